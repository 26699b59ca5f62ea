"""How sparse each matrix should be: importance from forward passes alone or from gradients, and an exact budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, TypeVar

import torch
from torch import Tensor

from terrazzo.compression.gradients import GradientStream
from terrazzo.data.keyed import derive
from terrazzo.errors import InputError

B = TypeVar("B")


@torch.no_grad()
def directional_slope(loss: Callable[[], float], weight: Tensor, noise: Tensor, eps: float) -> float:
    """The slope of a loss along `noise` from two forward passes; the weight comes back to the bit.

    Reference: ECoFLaP (arXiv 2310.02998): (L(w + eps z) - L(w - eps z)) / (2 eps).
    """
    before = weight.clone()
    try:
        weight.copy_(before).add_(noise, alpha=eps)
        above = loss()
        weight.copy_(before).sub_(noise, alpha=eps)
        below = loss()
    finally:
        weight.copy_(before)
    return (above - below) / (2 * eps)


def zeroth_order(
    loss: Callable[[B], float],
    weights: Mapping[str, Tensor],
    batches: Sequence[B],
    *,
    eps: float = 1e-3,
    seed: int = 0,
) -> dict[str, float]:
    """Importance of each matrix: the sum over batches of the loss's absolute slope along a random direction.

    No gradient is kept: memory is that of a forward pass and of one matrix. Two forward passes a matrix and batch; the
    model must be in evaluation mode, so that both see the same function.

    Args:
        weights: the model's own, changed for the time of a forward pass.

    Reference: ECoFLaP (arXiv 2310.02998); eps from its code.
    """
    scores = dict.fromkeys(weights, 0.0)
    for name, weight in weights.items():
        generator = torch.Generator().manual_seed(derive(seed, name) % 2**63)
        for batch in batches:
            noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype).to(weight.device)
            scores[name] += abs(directional_slope(partial(loss, batch), weight, noise, eps))
    return scores


def first_order(
    gradients: GradientStream, weights: Mapping[str, Tensor], kind: Literal["slope", "taylor"] = "slope"
) -> dict[str, float]:
    """Importance of each matrix from one backward pass an example, all matrices at once.

    Args:
        kind: "slope" is what `zeroth_order` estimates with one example a batch, exactly: the expected absolute slope
            along a normal direction, sqrt(2 / pi) times the gradient's norm. "taylor" sums (g w)^2 over the entries.
    """
    names, scores = list(weights), dict.fromkeys(weights, 0.0)
    for example in gradients(names):
        for name in names:
            gradient = example[name]
            if kind == "slope":
                scores[name] += math.sqrt(2 / math.pi) * float(torch.linalg.vector_norm(gradient))
            else:
                scores[name] += float((gradient * weights[name].detach()).square().sum())
    return scores


def allocate(
    scores: Mapping[str, float], sizes: Mapping[str, int], target: float, most: float | None = None
) -> dict[str, int]:
    """How many entries of each matrix stay: together exactly round((1 - target) * all), whatever the scores.

    Every matrix keeps at least the share 1 - most; the rest of the budget is given in shares proportional to the
    scores, so that equal scores keep equal shares, whatever their sizes; those that are full pass theirs on.

    Args:
        scores: importance, not negative; only their proportions matter.
        sizes: entries of each matrix.
        target: share of all entries that goes.
        most: largest share that may go from one matrix; None takes target + 0.1, at most 1.

    Raises:
        InputError: shares outside 0 to 1, `most` below `target`, or a score that is negative or not finite.

    Reference: ECoFLaP (arXiv 2310.02998); its code gives counts in proportion, not shares, and can miss
    the total.
    """
    most = min(1.0, target + 0.1) if most is None else most
    if not 0 <= target <= most <= 1:
        raise InputError(f"sparsity {target} and at most {most}: shares of the weights, the second not below the first")
    for name, score in scores.items():
        if not (math.isfinite(score) and score >= 0):
            raise InputError(f"importance of {name}: {score}; it must be a finite number, not negative")
    budget = sum(sizes.values()) - round(target * sum(sizes.values()))
    shares = _shares(scores, sizes, budget, 1 - most)
    return _whole({name: share * sizes[name] for name, share in shares.items()}, sizes, budget)


def _shares(scores: Mapping[str, float], sizes: Mapping[str, int], budget: int, floor: float) -> dict[str, float]:
    """Shares floor + c * score, at most 1, that add up to the budget; where scores end, the rest is even."""
    shares, open_names = dict.fromkeys(sizes, floor), set(sizes)
    left = budget - floor * sum(sizes.values())
    while open_names and left > 1e-9:
        weighted = {name: scores[name] * sizes[name] for name in open_names}
        even = not sum(weighted.values()) > 0
        total = sum(sizes[name] for name in open_names) if even else sum(weighted.values())
        asked = {name: shares[name] + left * (1.0 if even else scores[name]) / total for name in open_names}
        full = {name for name in open_names if asked[name] >= 1}
        if not full:
            shares.update(asked)
            break
        for name in full:
            left -= (1 - shares[name]) * sizes[name]
            shares[name] = 1.0
        open_names -= full
    return shares


def _whole(wanted: Mapping[str, float], sizes: Mapping[str, int], budget: int) -> dict[str, int]:
    """Whole numbers that add up to `budget`: rounded down, the largest remainders up, none above its size."""
    counts = {name: min(sizes[name], math.floor(value + 1e-9)) for name, value in wanted.items()}
    order = sorted(counts, key=lambda name: (counts[name] - wanted[name], name))
    missing = budget - sum(counts.values())
    while missing:
        step = 1 if missing > 0 else -1
        for name in order if step > 0 else reversed(order):
            if missing and 0 <= counts[name] + step <= sizes[name]:
                counts[name] += step
                missing -= step
    return counts


def sparsities(
    scores: Mapping[str, float], weights: Mapping[str, Tensor], target: float, most: float | None = None
) -> dict[str, float]:
    """`allocate` as the share that goes from each matrix: a target of `unstructured.magnitude`, `obert` and others."""
    sizes = {name: weight.numel() for name, weight in weights.items()}
    kept = allocate(scores, sizes, target, most)
    return {name: 1 - kept[name] / size for name, size in sizes.items()}
