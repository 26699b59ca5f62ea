"""The curve of a metric over one-shot magnitude sparsity, and its knee."""

import copy

import pytest
import torch
from torch.testing import assert_close

from terrazzo.compression.masks import single_matrices
from terrazzo.compression.sparsity_curve import CurvePoint, SparsityCurve, knee, sparsity_curve
from terrazzo.compression.unstructured import NM
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, mosaicbert


@pytest.fixture
def encoder():
    return Encoder(mosaicbert("tiny", 50, width=16, depth=2, num_heads=2, mlp_width=24))


def test_each_level_is_one_global_pruning_of_the_model_as_it_was(encoder):
    before = copy.deepcopy(encoder.state_dict())
    flat = torch.cat([view.flatten() for view in single_matrices(encoder).values()]).abs().sort().values

    def metric(pruned):
        """The smallest weight left; then what fine-tuning may do."""
        left = torch.cat([view[view != 0] for view in single_matrices(pruned).values()]).abs().min()
        with torch.no_grad():
            pruned.blocks[0].mlp.up.weight.add_(1)
            pruned.embeddings.tokens.weight.add_(1)
        return float(left)

    curve = sparsity_curve(encoder, metric, (0.8, 0.2, NM(1, 2)))
    assert [round(point.sparsity, 3) for point in curve.points] == [0.0, 0.2, 0.5, 0.8]
    for point in (curve.points[1], curve.points[3]):
        assert_close(point.metric, float(flat[round(point.sparsity * len(flat))]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    encoder.blocks[0].mlp.up.weight.data.zero_().add_(1)
    encoder.state_dict()
    assert encoder.blocks[0].mlp.up.weight.all(), "no mask is left behind"


def test_a_metric_that_fails_leaves_the_model_as_it_was(encoder):
    before = copy.deepcopy(encoder.state_dict())
    with pytest.raises(InputError, match="metric: nan at a sparsity of 0.00"):
        sparsity_curve(encoder, lambda _: float("nan"))
    with pytest.raises(ZeroDivisionError):
        sparsity_curve(encoder, lambda pruned: 1 / 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_the_knee_is_where_the_curve_leaves_the_line_of_its_ends():
    levels = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert knee(levels, [0.9, 0.9, 0.9, 0.9, 0.895, 0.89, 0.8, 0.7, 0.6, 0.5]) == 0.5
    assert knee(levels, [0.9 - 0.1 * i for i in range(10)]) is None, "a straight line has none"
    assert knee(levels, [0.5] * 10) is None and knee([0.0, 1.0], [1.0, 0.0]) is None
    assert knee(levels, [1 / (1 + i) for i in range(10)]) is None, "nor has one that sags"


def test_essential_sparsity_ends_at_the_first_level_that_costs_too_much():
    points = [CurvePoint(*pair) for pair in ((0, 0.9), (0.2, 0.91), (0.4, 0.895), (0.6, 0.85), (0.8, 0.9))]
    curve = SparsityCurve(tuple(points))
    assert curve.essential() == 0.4 and curve.essential(0.1) == 0.8 and curve.dense == 0.9


def test_a_model_with_zeros_begins_where_they_end(encoder):
    for view in single_matrices(encoder).values():
        view.data[:, ::2] = 0
    curve = sparsity_curve(encoder, lambda pruned: 1.0, (0.1, 0.3, NM(1, 2), 0.8))
    assert [round(point.sparsity, 3) for point in curve.points] == [0.5, 0.8]
