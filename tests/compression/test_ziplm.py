"""ZipLM against brute force, and what it promises: exact errors, exact inverses, better than its baselines.

Shapes: D rows, F columns, K columns that stay.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from terrazzo.compression import ziplm
from terrazzo.compression.curvature import Gram, obs_remove
from terrazzo.compression.sites import columns_of, ladder
from terrazzo.compression.statistics import Moments, collect, output_projections
from terrazzo.compression.structured import magnitude, without_update
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, bert, mosaicbert
from terrazzo.packed import Packed

DAMPING = 0.01


def problem(columns: int = 48, rows: int = 20, tokens: int = 300, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """A weight and correlated inputs, one of which is always zero, in float64."""
    draw = torch.Generator().manual_seed(0)
    mix = torch.randn(columns, columns, generator=draw, dtype=torch.float64) + 2 * torch.eye(columns)
    inputs_TF = torch.randn(tokens, columns, generator=draw, dtype=torch.float64) @ mix + shift
    inputs_TF[:, 5] = 0
    return torch.randn(rows, columns, generator=draw, dtype=torch.float64), inputs_TF


def damped(gram_FF: Tensor, damping: float = DAMPING) -> Tensor:
    diagonal_F = gram_FF.diagonal()
    return gram_FF + torch.diag((diagonal_F == 0).double() + damping * diagonal_F.mean())


def refitted(weight_DF: Tensor, hessian_FF: Tensor, columns_K: Tensor) -> tuple[Tensor, float]:
    """The columns that fit the whole product best, solved afresh, and the squared error that remains."""
    fitted_DK = torch.linalg.solve(hessian_FF[columns_K][:, columns_K], hessian_FF[columns_K] @ weight_DF.T).T
    change_DF = -weight_DF
    change_DF[:, columns_K] += fitted_DK
    return fitted_DK, float((change_DF @ hessian_FF * change_DF).sum())


def brute_force(weight_DF: Tensor, hessian_FF: Tensor, group: int, last: int) -> list[tuple[list[int], Tensor, float]]:
    """Every size down to `last`: each step solves the fit without each candidate and drops the one that costs least."""
    kept, found = list(range(weight_DF.shape[1] // group)), []
    while len(kept) > last:
        without = [[other for other in kept if other != group_] for group_ in kept]
        fits = [refitted(weight_DF, hessian_FF, columns_of(rest, group)) for rest in without]
        best = min(range(len(kept)), key=lambda index: fits[index][1])
        kept = without[best]
        found.append((kept, *fits[best]))
    return found


def check_greedy(group: int, damping: float = DAMPING) -> None:
    """Every structure that goes, every weight that stays and every error, against brute force."""
    weight_DF, inputs_TF = problem(64 if group == 8 else 48)
    gram_FF, groups = inputs_TF.T @ inputs_TF, weight_DF.shape[1] // group
    alive_DF = weight_DF.masked_fill(gram_FF.diagonal() == 0, 0)
    expected = brute_force(alive_DF, damped(gram_FF), group, groups // 4)
    sizes = range(groups - 1, groups // 4 - 1, -1)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        found = list(ziplm.prune(weight_DF.to(dtype), gram_FF, sizes, group=group, damping=damping))
        for (kept, weight_DK, loss), (wanted, fitted_DK, error) in zip(found, expected, strict=True):
            assert kept.tolist() == wanted
            assert_close(weight_DK.double(), fitted_DK, rtol=0, atol=tolerance)
            assert_close(loss, error, rtol=1e-6 if dtype == torch.float32 else 1e-9, atol=1e-9)


@pytest.mark.parametrize("group", [1, 8])
def test_the_greedy_pass_equals_brute_force(group: int) -> None:
    check_greedy(group)


class WithoutDowndate(Gram):
    def remove(self, weight_DF: Tensor, groups: Tensor) -> float:
        inverse_FF = self.inverse_FF.clone()
        loss = super().remove(weight_DF, groups)
        self.inverse_FF = inverse_FF
        return loss


class WithoutUpdate(Gram):
    def remove(self, weight_DF: Tensor, groups: Tensor) -> float:
        old_DF = weight_DF.clone()
        loss = super().remove(weight_DF, groups)
        weight_DF.copy_(old_DF)
        weight_DF[:, columns_of(groups, self.group)] = 0
        return loss


class DearestFirst(Gram):
    def prices(self, weight_DF: Tensor) -> Tensor:
        prices_G = -super().prices(weight_DF)
        return prices_G.masked_fill(self.gone_G, torch.inf)


@pytest.mark.parametrize("group", [1, 8])
@pytest.mark.parametrize("broken", [WithoutDowndate, WithoutUpdate, DearestFirst])
def test_a_broken_surgery_is_seen(monkeypatch: pytest.MonkeyPatch, broken: type[Gram], group: int) -> None:
    monkeypatch.setattr(ziplm, "Gram", broken)
    with pytest.raises(AssertionError):
        check_greedy(group)


def test_forgotten_damping_is_seen() -> None:
    with pytest.raises(AssertionError):
        check_greedy(1, damping=0.0)


@pytest.mark.parametrize("group", [1, 8])
@pytest.mark.parametrize("at_once", [1, 3])
def test_the_inverse_of_those_left_is_exact(group: int, at_once: int) -> None:
    weight_DF, inputs_TF = problem(64)
    gram_FF = inputs_TF.T @ inputs_TF / len(inputs_TF)
    gram, weight = Gram.of(gram_FF, group, DAMPING), weight_DF.float()
    gone, losses = obs_remove(weight, gram, 5, at_once)
    left = torch.tensor([index for index in range(64 // group) if index not in gone])
    columns_K = columns_of(left, group)
    hessian_FF = damped(gram_FF)
    exact_KK = torch.linalg.inv(hessian_FF[columns_K][:, columns_K])
    assert_close(gram.restricted(left).inverse_FF.double(), exact_KK, rtol=0, atol=1e-5)
    fitted_DK, error = refitted(weight_DF, hessian_FF, columns_K)
    assert_close(weight[:, columns_K].double(), fitted_DK, rtol=0, atol=1e-4)
    assert_close(sum(losses), error, rtol=1e-6, atol=0)
    assert len(gone) == 5 and not weight[:, columns_of(gone, group)].any()
    assert gram.prices(weight)[gone].isinf().all()


def test_too_little_damping_is_refused_with_the_mend() -> None:
    inputs_TF = torch.randn(4, 8, dtype=torch.float64)
    with pytest.raises(InputError, match="more calibration texts or more damping"):
        Gram.of(inputs_TF.T @ inputs_TF, damping=0.0)


def test_ladders_shrink_by_a_tenth_to_widths_that_products_like() -> None:
    sizes = ladder(1536)
    assert sizes[:4] == (1536, 1376, 1248, 1120) and sizes[-2:] == (16, 0)
    assert all(size % (32 if size >= 256 else 8) == 0 for size in sizes)
    assert ladder(5) == (5, 4, 3, 2, 1, 0) and ladder(0) == (0,)


def encoder_and_batches(gated: bool) -> tuple[Encoder, list[Packed]]:
    torch.manual_seed(1)
    shape = {"width": 32, "depth": 2, "num_heads": 4, "mlp_width": 48}
    encoder = Encoder((mosaicbert if gated else bert)("tiny", 100, **shape))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    batches = [
        Packed(tokens_T=torch.randint(0, 100, (sum(lengths),)), lengths=lengths)
        for lengths in ((20, 31, 9), (64,), (40, 40, 3))
    ]
    return encoder, batches


def check_ordered(gated: bool, damping: float = DAMPING) -> None:
    encoder, batches = encoder_and_batches(gated)
    grams = collect(encoder, batches, output_projections(encoder.config)).grams
    zip_levels = ziplm.database(encoder, grams, damping=damping)
    by_norm, as_they_were = magnitude(encoder, grams), without_update(encoder, grams, zip_levels)
    assert list(zip_levels.levels) == ["heads.0", "units.0", "heads.1", "units.1"]
    for site, levels in zip_levels.levels.items():
        errors = [level.relative_error for level in levels]
        assert errors[0] == 0 and errors == sorted(errors)
        assert_close(errors[-1], 1.0, rtol=1e-6, atol=0)
        for level in levels[1:-1]:
            for other in (by_norm, as_they_were):
                assert level.error < other.level(site, level.size).error, (site, level.size, other.made)


@pytest.mark.parametrize("gated", [False, True])
def test_errors_grow_with_what_is_cut_and_stay_below_the_baselines(gated: bool) -> None:
    check_ordered(gated)


@pytest.mark.parametrize("broken", [WithoutDowndate, WithoutUpdate, DearestFirst])
def test_a_broken_surgery_loses_to_the_baselines(monkeypatch: pytest.MonkeyPatch, broken: type[Gram]) -> None:
    monkeypatch.setattr(ziplm, "Gram", broken)
    with pytest.raises(AssertionError):
        check_ordered(False)


def test_the_stored_error_is_that_of_the_products() -> None:
    encoder, batches = encoder_and_batches(True)
    inputs: list[Tensor] = []
    module = encoder.get_submodule("blocks.1.mlp.down")
    with module.register_forward_pre_hook(lambda _, given: inputs.append(given[0])):
        grams = collect(encoder, batches, output_projections(encoder.config)).grams
    inputs_TF, weight_DF = torch.cat(inputs), module.weight.detach()
    level = ziplm.database(encoder, grams, {"units.1": [20]}).level("units.1", 20)
    wrong_TD = inputs_TF[:, list(level.kept)] @ level.weight_DK.T - inputs_TF @ weight_DF.T
    assert_close(level.error, float(wrong_TD.norm()), rtol=1e-4, atol=0)
    assert_close(level.relative_error, float(wrong_TD.norm() / (inputs_TF @ weight_DF.T).norm()), rtol=1e-4, atol=0)


def test_centring_lets_the_bias_take_the_mean() -> None:
    encoder, batches = encoder_and_batches(False)
    grams = collect(encoder, batches, output_projections(encoder.config)).grams
    moments, site = grams["blocks.0.mlp.down.weight"], {"units.0": [12]}
    level = ziplm.database(encoder, grams, site, centre=True, damping=1e-9, dtype=torch.float64).level("units.0", 12)
    kept, tokens = list(level.kept), moments.tokens
    with_one = torch.cat([torch.cat([moments.gram_FF, moments.sum_F[None]]), torch.zeros(49, 1)], 1)
    with_one[:, -1] = torch.cat([moments.sum_F, torch.tensor([float(tokens)])])
    down = encoder.get_submodule("blocks.0.mlp.down")
    whole = torch.cat([down.weight, down.bias[:, None]], 1).detach().double()
    fitted, error = refitted(whole, with_one, torch.tensor([*kept, 48]))
    assert level.bias_D is not None
    assert_close(torch.cat([level.weight_DK, level.bias_D[:, None]], 1).double(), fitted, rtol=0, atol=1e-5)
    assert_close(level.error**2, error, rtol=1e-5, atol=0)
    assert level.error < ziplm.database(encoder, grams, site, damping=1e-9).level("units.0", 12).error


@pytest.mark.parametrize("fails", ["raises", "drifts"])
def test_float64_takes_over_where_float32_breaks_down(monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    encoder, batches = encoder_and_batches(False)
    grams = collect(encoder, batches, output_projections(encoder.config)).grams
    exact = ziplm.database(encoder, grams, {"units.0": [12]}, dtype=torch.float64).level("units.0", 12)
    plain: Callable[[Gram, Tensor, Tensor], float] = Gram.remove

    def fragile(self: Gram, weight_DF: Tensor, groups: Tensor) -> float:
        if weight_DF.dtype == torch.float32 and fails == "raises":
            raise torch.linalg.LinAlgError("not positive definite")
        if weight_DF.dtype == torch.float32:
            weight_DF.mul_(0.99)
        return plain(self, weight_DF, groups)

    monkeypatch.setattr(Gram, "remove", fragile)
    found = ziplm.database(encoder, grams, {"units.0": [12]}).level("units.0", 12)
    assert found.kept == exact.kept
    assert_close(found.weight_DK, exact.weight_DK, rtol=1e-5, atol=1e-6)


def test_statistics_of_another_shape_are_refused() -> None:
    encoder, _ = encoder_and_batches(False)
    with pytest.raises(InputError, match="blocks.0.mlp.down.weight: missing, or of another encoder"):
        ziplm.database(encoder, {"blocks.0.mlp.down.weight": Moments.of(torch.ones(3, 7))}, {"units.0": [3]})
    with pytest.raises(InputError, match="give sizes from 0 to 48"):
        ziplm.database(encoder, {}, {"units.0": [49]})
    with pytest.raises(InputError, match="did you mean 'units.1'"):
        ziplm.database(encoder, {}, {"unit.1": [3]})
