"""Ratios for matrices: slopes from two forward passes, and a budget that is met to the entry."""

import math
import random

import pytest
import torch
from torch.testing import assert_close

from terrazzo.compression.ratios import allocate, directional_slope, first_order, sparsities, zeroth_order
from terrazzo.errors import InputError


def loss_of(weight, x):
    return float((weight @ x).sin().exp().sum())


def test_slope_is_that_of_the_gradient_and_its_error_falls_with_the_square_of_the_step():
    weight, x = torch.randn(3, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    noise, before = torch.randn_like(weight), weight.clone()
    tracked = weight.clone().requires_grad_()
    (tracked @ x).sin().exp().sum().backward()
    wanted = float((tracked.grad * noise).sum())
    errors = [abs(directional_slope(lambda: loss_of(weight, x), weight, noise, eps) - wanted) for eps in (2e-2, 1e-2)]
    assert errors[1] < 1e-2 * abs(wanted) and 3.5 < errors[0] / errors[1] < 4.5
    assert torch.equal(weight, before), "comes back to the bit"


def test_a_weight_comes_back_when_the_loss_fails():
    weight = torch.randn(3, 4)
    before = weight.clone()
    with pytest.raises(RuntimeError):
        directional_slope(lambda: (_ for _ in ()).throw(RuntimeError()), weight, torch.ones(3, 4), 1e-3)
    assert torch.equal(weight, before)


class Linear:
    """Gradients of sum(A * w) for one A an example: a loss whose slopes are known."""

    def __init__(self, weights, examples):
        scales = dict(zip(weights, (1, 4), strict=True))
        self.examples = [
            {name: torch.randn_like(weight) * scales[name] for name, weight in weights.items()} for _ in range(examples)
        ]

    def __len__(self):
        return len(self.examples)

    def __call__(self, names):
        yield from ({name: example[name] for name in names} for example in self.examples)


def test_first_order_is_what_zeroth_order_estimates():
    weights = {name: torch.randn(5, 6, dtype=torch.float64) for name in "ab"}
    stream = Linear(weights, 400)
    slopes = zeroth_order(lambda a: float(sum((a[n] * weights[n]).sum() for n in a)), weights, stream.examples, seed=3)
    exact = first_order(stream, weights)
    for name in weights:
        assert slopes[name] == pytest.approx(exact[name], rel=0.1)
    taylor = first_order(stream, weights, "taylor")
    assert taylor["b"] == pytest.approx(sum(float((e["b"] * weights["b"]).square().sum()) for e in stream.examples))


def test_the_budget_is_met_to_the_entry_within_bounds():
    draw = random.Random(0)
    for _ in range(1000):
        sizes = {str(i): draw.choice([1, 7, 30, 144, 5000]) for i in range(draw.randint(1, 9))}
        scores = {name: draw.choice([0.0, draw.random(), draw.expovariate(0.01), 1e9]) for name in sizes}
        target = draw.choice([0.0, 0.5, 0.85, 1.0, draw.random()])
        kept, most = allocate(scores, sizes, target), min(1.0, target + 0.1)
        total = sum(sizes.values())
        assert sum(kept.values()) == total - round(target * total)
        assert all((1 - most) * sizes[n] - 1 <= kept[n] <= sizes[n] for n in sizes)


def test_equal_scores_keep_equal_shares_and_higher_ones_more():
    sizes = {"small": 100, "large": 10_000, "middle": 1000}
    assert allocate(dict.fromkeys(sizes, 3.0), sizes, 0.6) == {"small": 40, "large": 4000, "middle": 400}
    assert allocate(dict.fromkeys(sizes, 0.0), sizes, 0.6) == {"small": 40, "large": 4000, "middle": 400}
    kept = allocate({"small": 9.0, "large": 1.0, "middle": 2.0}, sizes, 0.6, most=0.65)
    shares = {name: kept[name] / sizes[name] for name in sizes}
    extra = {name: share - 0.35 for name, share in shares.items()}
    assert extra["middle"] == pytest.approx(2 * extra["large"], rel=0.02)
    assert extra["small"] == pytest.approx(9 * extra["large"], rel=0.05)
    full = allocate({"small": 1000.0, "large": 1.0, "middle": 1.0}, sizes, 0.6)
    assert full == {"small": 100, "large": 3945, "middle": 395}, "what does not fit goes to the others, in shares again"


def test_sparsities_are_the_counts_as_shares_and_bad_scores_are_refused():
    weights = {"a": torch.zeros(4, 5), "b": torch.zeros(10, 10)}
    shares = sparsities({"a": 2.0, "b": 1.0}, weights, 0.5)
    assert_close(shares["a"] * 20 + shares["b"] * 100, 60.0)
    for bad in (-1.0, math.nan):
        with pytest.raises(InputError, match="importance of a"):
            allocate({"a": bad, "b": 1.0}, {"a": 2, "b": 2}, 0.5)
    with pytest.raises(InputError, match=r"0\.9 and at most 0\.5"):
        allocate({"a": 1.0}, {"a": 10}, 0.9, most=0.5)
