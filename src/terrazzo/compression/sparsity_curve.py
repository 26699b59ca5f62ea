"""Essential sparsity: a metric against the share of weights that goes at once by magnitude, and where it breaks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from terrazzo.compression.masks import Masks, single_matrices, zeros_of
from terrazzo.compression.masks import sparsity as sparsity_of
from terrazzo.compression.unstructured import NM, keep_best, magnitude_scores
from terrazzo.errors import InputError
from terrazzo.nn import Encoder

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class CurvePoint:
    """One pruning: the share of the blocks' weights that are zero, and the metric then."""

    sparsity: float
    metric: float


@dataclass(frozen=True)
class SparsityCurve:
    """A metric by sparsity, the model as it was first."""

    points: tuple[CurvePoint, ...]

    @property
    def dense(self) -> float:
        """The metric of the model as it was."""
        return self.points[0].metric

    def essential(self, drop: float = 0.01) -> float:
        """The highest sparsity up to which, at every level tried, the metric has lost at most `drop`.

        Reference: essential sparsity (arXiv 2306.03805): within 1 % of the dense model.
        """
        held = self.points[0].sparsity
        for point in self.points:
            if not point.metric >= self.dense - drop:
                break
            held = point.sparsity
        return held

    @property
    def knee(self) -> float | None:
        """Where the curve bends down: see `knee`."""
        return knee([point.sparsity for point in self.points], [point.metric for point in self.points])


def sparsity_curve(
    encoder: Encoder, metric: Callable[[Encoder], float], levels: Sequence[float | NM] = LEVELS
) -> SparsityCurve:
    """Prune by magnitude once to each level, with one threshold for all matrices, ask for the metric, and put back.

    Args:
        metric: of the encoder with its zeros, higher is better. To follow the paper, fine-tune in it: the encoder's
            weights may change, its zeros are held at zero meanwhile, and all is as before afterwards.
        levels: shares of the blocks' weights, or N:M patterns; those that the encoder's own zeros fill are left out.

    Raises:
        InputError: a level outside 0 to 1, a pattern that does not fit, or a metric that is not finite.

    Reference: essential sparsity (arXiv 2306.03805).
    """
    before = {name: tensor.detach().clone() for name, tensor in encoder.state_dict().items()}
    views, zeros = single_matrices(encoder), zeros_of(encoder)
    scores = magnitude_scores({name: view.clone() for name, view in views.items()})
    pruned = [keep_best(scores, level, keep=zeros) for level in levels]
    keeps = [zeros] + [keep for keep in pruned if sparsity_of(keep) > sparsity_of(zeros)]
    points = []
    for keep in sorted(keeps, key=sparsity_of):
        masks = Masks(encoder, keep)
        try:
            value = metric(encoder)
        finally:
            masks.remove()
            encoder.load_state_dict(before)
        if not math.isfinite(value):
            raise InputError(f"metric: {value} at a sparsity of {masks.sparsity:.2f}; it must be a finite number")
        points.append(CurvePoint(masks.sparsity, value))
    return SparsityCurve(tuple(points))


def knee(sparsities: Sequence[float], metrics: Sequence[float]) -> float | None:
    """The sparsity at which the metric lies highest above the straight line from the first point to the last.

    None where it nowhere lies above it, so that nothing bends down, or where the metric does not fall at all.

    Reference: Kneedle (Satopaa et al., 2011), without its smoothing.
    """
    x, y = torch.tensor(sparsities, dtype=torch.float64), torch.tensor(metrics, dtype=torch.float64)
    if len(x) < 3 or not (y[0] > y[-1] and x[-1] > x[0]):
        return None
    share, height = (x - x[0]) / (x[-1] - x[0]), (y - y[-1]) / (y[0] - y[-1])
    above = height + share - 1
    best = int(above.argmax())
    return float(x[best]) if above[best] > 1e-9 else None
