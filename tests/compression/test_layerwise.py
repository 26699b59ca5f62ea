"""SparseGPT and Wanda: against plain optimal brain surgery, row by row, and against each other."""

import pytest
import torch
from torch.testing import assert_close

from terrazzo.compression.layerwise import prune_layerwise, reconstruction_error
from terrazzo.compression.masks import single_matrices
from terrazzo.compression.sparsegpt import sparsegpt
from terrazzo.compression.statistics import Wanted, collect
from terrazzo.compression.unstructured import NM, magnitude
from terrazzo.compression.wanda import wanda
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, modernbert
from terrazzo.packed import Packed


def case(rows=12, columns=24, dtype=torch.float64):
    inputs = torch.randn(100, columns, dtype=dtype) @ torch.randn(columns, columns, dtype=dtype)
    inputs *= torch.logspace(-0.5, 0.5, columns, dtype=dtype)[torch.randperm(columns)]
    return torch.randn(rows, columns, dtype=dtype), inputs.T @ inputs


def surgery(weight_OI, gram_II, kept_OI, damp):
    """Each row by itself, columns left to right, with a fresh inverse of what is left at every column."""
    gram = gram_II + damp * gram_II.diagonal().mean() * torch.eye(len(gram_II), dtype=gram_II.dtype)
    after = weight_OI.clone()
    for row, kept in zip(after, kept_OI, strict=True):
        for column in range(len(row)):
            if not kept[column]:
                inverse = torch.linalg.inv(gram[column:, column:])
                row[column:] -= row[column].item() / inverse[0, 0] * inverse[0]
                row[column] = 0
    return after


@pytest.mark.parametrize("target", [0.5, NM(2, 4)])
@pytest.mark.parametrize("step", [8, 24, 100])
def test_sparsegpt_is_optimal_brain_surgery_from_left_to_right(target, step):
    weight, gram = case()
    after, kept = sparsegpt(weight, gram, target, step=step)
    assert_close(after, surgery(weight, gram, kept, 0.01), rtol=1e-8, atol=1e-8)
    assert int((~kept).sum()) == 144 and torch.equal(after != 0, kept)
    assert not isinstance(target, NM) or (kept.view(12, 6, 4).sum(2) == 2).all()


def test_wanda_prunes_every_row_alike_by_weight_times_input():
    weight, gram = case(30, 20)
    kept = wanda(weight, gram, 0.4)
    scores = weight.abs() * gram.diagonal().sqrt()
    assert (kept.sum(1) == 12).all() and torch.equal(kept, scores >= scores.sort(1).values[:, 8:9])
    assert torch.equal(kept, wanda(weight, 7 * gram.diagonal(), 0.4))


@pytest.mark.parametrize("target", [0.5, NM(2, 4)])
def test_the_more_a_method_knows_the_smaller_its_error(target):
    wins = 0
    for seed in range(20):
        torch.manual_seed(seed)
        weight, gram = case()
        errors = [
            reconstruction_error(weight, after, gram)
            for after in (
                sparsegpt(weight, gram, target)[0],
                weight * wanda(weight, gram, target),
                weight * magnitude({"w": weight}, target)["w"],
            )
        ]
        wins += errors == sorted(errors)
    assert wins >= 19


def test_exact_counts_dead_inputs_and_what_was_pruned_before():
    weight, gram = case(5, 10)
    gram[:, 3] = gram[3] = 0
    after, kept = sparsegpt(weight, gram, 0.33, step=3)
    assert int((~kept).sum()) == round(0.33 * 50) and not after[:, 3].any() and after.isfinite().all()
    again, still = sparsegpt(after, gram, 0.5, keep_OI=kept)
    assert not (still & ~kept).any() and not again[~kept].any() and int((~still).sum()) == 25
    with pytest.raises(InputError, match="not finite"):
        sparsegpt(weight, gram * torch.nan, 0.5)
    with pytest.raises(InputError, match="depend on each other"):
        sparsegpt(weight, torch.ones(10, 10, dtype=torch.float64), 0.5, damp=0.0)


@pytest.mark.parametrize("method", ["sparsegpt", "wanda"])
def test_every_matrix_of_an_encoder_gets_its_own_share(method):
    encoder = Encoder(modernbert("tiny", 50, width=16, depth=2, num_heads=2, mlp_width=24)).eval()
    batch = Packed(tokens_T=torch.randint(50, (60,)), lengths=(20, 25, 15))
    names = {name.partition(":")[0] for name in single_matrices(encoder)}
    grams = {n: m.gram_FF for n, m in collect(encoder, [batch], Wanted(grams=frozenset(names))).grams.items()}
    before = {name: view.clone() for name, view in single_matrices(encoder).items()}
    views = single_matrices(encoder)
    target = {name: 0.5 if index % 2 else 0.25 for index, name in enumerate(views)}
    pruned = prune_layerwise(encoder, grams, target, method)
    for name, view in views.items():
        assert torch.equal(view != 0, pruned.keep[name]), name
        assert int((view == 0).sum()) == target[name] * view.numel()
        moved = (view != before[name]) & pruned.keep[name]
        assert moved.any() if method == "sparsegpt" else not moved.any()
    errors = [reconstruction_error(before[n], view, grams[n.partition(":")[0]]) for n, view in views.items()]
    assert_close(pruned.cost, sum(errors))
    with pytest.raises(InputError, match="no statistics"):
        prune_layerwise(encoder, {}, 0.5, method)


@pytest.mark.parametrize("target", [0.25, NM(6, 8)])
def test_what_an_earlier_pruning_removed_does_not_come_back(target):
    weight_OI, gram_II = case(8, 16)
    keep_OI = torch.arange(16).expand(8, 16) < 8
    after, kept = sparsegpt(weight_OI, gram_II, target, step=8, keep_OI=keep_OI)
    assert not kept[:, 8:].any() and not after[:, 8:].any()
    assert 0 < kept[:, :8].sum() < 64
