"""Single weights: prices and updates against the constrained minimum, exact numbers of zeros, patterns."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from terrazzo.compression.fisher import BlockFisher, BlockLayout
from terrazzo.compression.masks import sparsity
from terrazzo.compression.unstructured import NM, ObertConfig, keep_best, magnitude, obert
from terrazzo.errors import InputError


class Given:
    def __init__(self, gradients):
        self.gradients, self.passes = gradients, 0

    def __len__(self):
        return len(self.gradients)

    def __call__(self, names):
        self.passes += 1
        yield from ({name: gradient[name] for name in names} for gradient in self.gradients)


def correlated(blocks, width, dtype=torch.float64):
    mix = torch.randn(blocks, width, width, dtype=dtype)
    return mix @ mix.mT / width + 0.01 * torch.eye(width, dtype=dtype)


def constrained_minimum(fisher_BB, w_B, gone):
    """min dw' F dw / 2 with dw = -w at `gone`, by the KKT system."""
    size, rank = len(w_B), len(gone)
    rows = torch.eye(size, dtype=w_B.dtype)[gone]
    system = torch.zeros(size + rank, size + rank, dtype=w_B.dtype)
    system[:size, :size], system[:size, size:], system[size:, :size] = fisher_BB, rows.T, rows
    right = torch.cat([torch.zeros(size, dtype=w_B.dtype), -w_B[gone]])
    dw = torch.linalg.solve(system, right)[:size]
    return dw, float(dw @ fisher_BB @ dw / 2)


def loss_of(dw_KB, fisher_KBB):
    return float(torch.einsum("ki,kij,kj->", dw_KB, fisher_KBB, dw_KB) / 2)


@pytest.fixture
def block():
    fisher_KBB, weight = correlated(1, 12), torch.randn(1, 12, dtype=torch.float64)
    return fisher_KBB[0], weight, BlockFisher(torch.linalg.inv(fisher_KBB), BlockLayout.of((1, 12), 12, 4))


def test_prices_are_those_of_the_constrained_minimum(block):
    fisher, weight, found = block
    single, fours = found.scores(weight), found.scores(weight, 4)
    for column in range(12):
        assert_close(single[0, column].item(), constrained_minimum(fisher, weight[0], [column])[1])
        group = list(range(column // 4 * 4, column // 4 * 4 + 4))
        assert_close(fours[0, column].item(), constrained_minimum(fisher, weight[0], group)[1])


def test_update_is_the_constrained_minimum(block):
    fisher, weight, found = block
    for gone in itertools.combinations(range(12), 3):
        keep = torch.ones(1, 12, dtype=torch.bool)
        keep[0, list(gone)] = False
        after, cost = found.prune(weight, keep)
        dw, wanted = constrained_minimum(fisher, weight[0], list(gone))
        assert_close(after[0], (weight[0] + dw) * keep[0])
        assert_close(cost, wanted)


@pytest.mark.parametrize("group", [1, 4])
def test_greedy_prices_are_those_of_one_removal_after_the_other(group):
    """A reference that solves the constrained minimum anew for every candidate at every step, some gone already."""
    fisher_KBB, weight = correlated(3, 12), torch.randn(3, 12, dtype=torch.float64)
    keep = torch.ones(3, 12, dtype=torch.bool)
    keep[1, 4:8], keep[2, :4] = False, False
    weight = weight * keep
    fisher_KBB = fisher_KBB * (keep[:, :, None] & keep[:, None]) + torch.diag_embed((~keep).double())
    found = BlockFisher(torch.linalg.inv(fisher_KBB), BlockLayout.of((3, 12), 12, group))
    inverse = found.inverse_KBB.clone()
    scores = found.greedy_scores(weight, group, keep)
    assert torch.equal(found.inverse_KBB, inverse), "the Fisher is still there"
    for row in range(3):
        gone, turns = (~keep[row]).nonzero().flatten().tolist(), []
        assert not scores[row][~keep[row]].any()
        so_far = 0.0
        while len(gone) < 12:
            left = [g for g in range(0, 12, group) if g not in gone]
            costs = [
                constrained_minimum(fisher_KBB[row], weight[row], gone + list(range(g, g + group)))[1] for g in left
            ]
            best = costs.index(min(costs))
            turns.append((left[best], costs[best] - so_far))
            so_far = costs[best]
            gone += range(left[best], left[best] + group)
        prices = [price for _, price in turns]
        wanted = [
            max(min(sum(prices[a : b + 1]) / (b + 1 - a) for b in range(i, len(prices))) for a in range(i + 1))
            for i in range(len(prices))
        ]
        assert wanted == sorted(wanted)
        for (place, _), price in zip(turns, wanted, strict=True):
            assert_close(scores[row, place : place + group], torch.full((group,), price, dtype=torch.float64))


def test_joint_update_is_never_worse_than_the_sum_of_single_ones():
    """SparseML sums single updates: worse than no update at all where much of a block goes; equal for one a block."""
    fisher_KBB, weight = correlated(40, 16), torch.randn(40, 16, dtype=torch.float64)
    inverse = torch.linalg.inv(fisher_KBB)
    found = BlockFisher(inverse, BlockLayout.of((40, 16), 16))
    for share, alike in ((0.5, False), (None, True)):
        scores = found.scores(weight)
        keep = keep_best({"w": scores}, share)["w"] if share else scores > scores.min(1, keepdim=True).values
        joint, cost = found.prune(weight, keep)
        alone = weight - torch.einsum("kij,kj->ki", inverse, (weight / found.diagonal()) * ~keep)
        losses = [loss_of(after - weight, fisher_KBB) for after in (joint, alone * keep, weight * keep)]
        assert_close(cost, losses[0])
        assert losses[0] < losses[2] and (alike or losses[0] < 0.7 * min(losses[1:]))
        assert not alike or losses[1] == pytest.approx(losses[0], rel=1e-9)


def test_numbers_of_zeros_are_exact():
    weights = {"a": torch.randn(6, 10), "b": 5 * torch.randn(3, 8)}
    assert sum(int((~m).sum()) for m in magnitude(weights, 0.5).values()) == 42
    assert int((~magnitude(weights, 0.5)["a"]).sum()) > 30, "one threshold for all"
    own = magnitude(weights, {"a": 0.5, "b": 0.25})
    assert [int((~own[name]).sum()) for name in "ab"] == [30, 6]
    ends = torch.cat([w.abs().flatten() for w in weights.values()]).sort().values
    kept = torch.cat([weights[name][mask].abs() for name, mask in magnitude(weights, 0.3).items()])
    assert_close(kept.min(), ends[25])
    half = magnitude(weights, 0.5)
    more = magnitude({name: weight * 0 + 1 for name, weight in weights.items()}, 0.6, keep=half)
    assert all(not (more[name] & ~half[name]).any() for name in weights), "what went stays away"
    with pytest.raises(InputError, match=r"sparsity 1\.5"):
        magnitude(weights, 1.5)


def test_groups_go_together_and_patterns_hold_in_every_row():
    weights = {"w": torch.randn(8, 12)}
    fours = magnitude(weights, 0.5, group=4)["w"].view(8, 3, 4)
    assert torch.equal(fours.any(2), fours.all(2)) and int((~fours).sum()) == 48
    ragged = magnitude({"w": torch.randn(8, 10)}, 0.5, group=4)["w"]
    assert ragged.shape == (8, 10) and torch.equal(ragged[:, 8], ragged[:, 9])
    mask = magnitude(weights, NM(2, 4))["w"]
    assert (mask.view(8, 3, 4).sum(2) == 2).all()
    best = weights["w"].abs().view(8, 3, 4).topk(2).values.min(2).values
    assert (weights["w"].abs().view(8, 3, 4)[mask.view(8, 3, 4)].view(8, 3, 2).min(2).values == best).all()
    with pytest.raises(InputError, match="does not divide 10 columns"):
        magnitude({"w": torch.randn(8, 10)}, NM(2, 4))


def problem(dtype=torch.float32):
    """Two matrices and gradients of 200 examples, correlated along rows, of sizes that differ by column."""
    weights = {"a": torch.randn(6, 10, dtype=dtype), "b": torch.randn(4, 8, dtype=dtype)}
    mixing = {}
    for name, weight in weights.items():
        size = weight.shape[1]
        mixing[name] = torch.eye(size, dtype=dtype) + 0.5 * torch.randn(size, size, dtype=dtype)
        mixing[name] *= torch.logspace(-0.5, 0.5, size, dtype=dtype)[torch.randperm(size)]
    grads = [
        {name: torch.randn(w.shape, dtype=dtype) @ mixing[name] for name, w in weights.items()} for _ in range(200)
    ]
    return weights, Given(grads)


@pytest.mark.parametrize("target", [0.6, {"a": 0.5, "b": 0.7}, NM(1, 2)])
def test_matrices_in_turns_give_what_all_at_once_give(target):
    weights, gradients = problem()
    copies = {name: weight.clone() for name, weight in weights.items()}
    whole = obert(weights, gradients, target, ObertConfig(block=5))
    assert gradients.passes == 1
    turns = obert(copies, gradients, target, ObertConfig(block=5, memory=1))
    assert gradients.passes == 4, "the last turn's are still there"
    for name in weights:
        assert torch.equal(whole.keep[name], turns.keep[name])
        assert_close(weights[name], copies[name])
        assert not weights[name][~whole.keep[name]].any() and weights[name][whole.keep[name]].all()


def test_obert_costs_less_than_magnitude_and_recomputation_less_still():
    """On a quadratic loss of which the gradients tell the truth, one block a row."""
    totals = dict.fromkeys(("magnitude", "none", "joint", "four", "greedy"), 0.0)
    for seed in range(3):
        torch.manual_seed(seed)
        weights, gradients = problem(torch.float64)
        fisher = {name: _truth(gradients, name) for name in weights}
        options = {"none": {"update": "none"}, "joint": {}, "four": {"recomputations": 4}, "greedy": {}}
        for kind in totals:
            after = {name: weight.clone() for name, weight in weights.items()}
            if kind == "magnitude":
                keep = magnitude(after, 0.6)
                after = {name: weight * keep[name] for name, weight in after.items()}
            else:
                prices = "greedy" if kind == "greedy" else "single"
                config = ObertConfig(block=10, damp=1e-6, prices=prices, **options[kind])
                keep = obert(after, gradients, 0.6, config).keep
            assert abs(sparsity(keep) - 0.6) < 1 / 92
            totals[kind] += sum(loss_of(after[name] - weights[name], fisher[name]) for name in weights)
    assert totals["joint"] < 0.9 * totals["none"] and totals["none"] < 0.9 * totals["magnitude"]
    assert totals["four"] < 0.6 * totals["joint"] and totals["greedy"] < 0.8 * totals["four"]


def _truth(gradients, name):
    stacked = torch.stack([gradient[name] for gradient in gradients.gradients])
    return torch.einsum("noi,noj->oij", stacked, stacked) / len(stacked)


def test_what_is_pruned_stays_pruned_and_out_of_the_fisher():
    weights, gradients = problem()
    first = obert(weights, gradients, 0.3, ObertConfig(block=5))
    second = obert(weights, gradients, 0.7, ObertConfig(block=5, recomputations=2), first.keep)
    for name, weight in weights.items():
        assert not (second.keep[name] & ~first.keep[name]).any() and not weight[~first.keep[name]].any()
    assert abs(sparsity(second.keep) - 0.7) < 1 / 92
    with pytest.raises(InputError, match="block 50 must be a multiple of obert.group 4"):
        ObertConfig(group=4)


def test_what_was_removed_before_stays_away_whatever_its_group():
    weights = {"w": torch.tensor([[0.0, 10, 10, 10, 0.1, 0.1, 0.1, 0.1]])}
    keep = {"w": weights["w"] != 0}
    assert magnitude(weights, 0.5, group=4, keep=keep)["w"].tolist() == [[False] + [True] * 3 + [False] * 4]
    for target in (0.1, NM(6, 8), {"w": 0.25}):
        assert not magnitude({"w": torch.zeros(1, 8)}, target, keep={"w": torch.arange(8)[None] > 5})["w"][:, :6].any()
