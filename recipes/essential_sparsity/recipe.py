"""Essential sparsity: pre-trained weights removed at once by magnitude, then fine-tuned; the curve and its knee."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.claims import Tier
from recipes.compressed import (
    TINY,
    Start,
    around,
    begin,
    drawn,
    folder_points,
    fresh,
    points,
    trained,
    workload,
)
from recipes.essential_sparsity.picture import draw
from recipes.runner import Context
from terrazzo.compression import PruningWorkload, SparsityCurve, sparsity_curve
from terrazzo.compression.masks import sparsity, zeros_of
from terrazzo.compression.sparsity_curve import LEVELS
from terrazzo.nn import Encoder
from terrazzo.tasks import Example
from terrazzo.tasks.model import load_task_model


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One tier.

    Args:
        rows: that are fine-tuned on, drawn by each seed; dev: that are looked at meanwhile; proof: that judge.
        levels: sparsities with seed 0; repeated: those of the other seeds.
    """

    task: str = "sst2"
    rows: int = 1_000
    dev: int = 200
    proof: int | None = None
    levels: tuple[float, ...] = LEVELS
    repeated: tuple[float, ...] = (0.3, 0.5, 0.8)
    tuning: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 3


RESULTS = Path(__file__).parent / "results"

SETTINGS = {
    "smoke": Settings(levels=(0.3, 0.5, 0.8), tuning={**TINY, "epochs": 2.0}, seeds=1),
    "small": Settings(proof=1_000, tuning={"lr": (2e-4,), "epochs": 2.0}),
}


def run(tier: Tier, context: Context) -> dict[int, dict[str, float]]:
    """Points lost by seed at some sparsities; for seed 0 also where the whole curve bends, trained and untrained."""
    settings = SETTINGS[tier]
    context.record("config", settings)
    start = begin(tier, settings.task, context, settings.proof)
    metrics, curves, whole = {}, {}, {}
    repeated: dict[float, list[float]] = {share: [] for share in settings.repeated}
    for seed in range(settings.seeds):
        levels = settings.repeated if seed else settings.levels
        curve = sparsity_curve(*_fine_tuned(settings, start, seed, context), levels)
        curves[f"fine-tuned, seed {seed}"] = _listed(curve)
        metrics[seed] = _lost(curve)
        for point in curve.points[1:] if seed else ():
            repeated[round(point.sparsity, 2)].append(point.metric)
        if not seed:
            whole["removed, then fine-tuned"] = curve
            metrics[seed] |= {"knee": curve.knee or 0.0, "within_a_point": curve.essential(1.0)}
    curve = whole["fine-tuned, then removed"] = _untrained(settings, start)
    curves["fine-tuned before, not after"] = _listed(curve)
    metrics[0] |= {"knee_untrained": curve.knee or 0.0, "within_a_point_untrained": curve.essential(1.0)}
    context.record("curves", curves)
    draw(whole, repeated, RESULTS if tier == "small" else context.work)
    return metrics


def _lost(curve: SparsityCurve) -> dict[str, float]:
    at = {round(point.sparsity, 2): point.metric for point in curve.points}
    return {
        "dense": curve.dense,
        "drop_at_30": curve.dense - at[0.3],
        "lost_before": curve.dense - at[0.5],
        "lost_after": at[0.5] - at[0.8],
    }


def _listed(curve: SparsityCurve) -> list[tuple[float, float]]:
    return [(point.sparsity, point.metric) for point in curve.points]


def _fine_tuned(
    settings: Settings, start: Start, seed: int, context: Context
) -> tuple[Encoder, Callable[[Encoder], float]]:
    """The pre-trained encoder, and the points that it reaches fine-tuned with the zeros it then has."""
    rows: Sequence[Example] = drawn(start.rows.train, settings.rows, seed)
    dev = drawn(start.rows.dev, settings.dev)
    like = fresh(start, rows, seed)

    def metric(encoder: Encoder) -> float:
        share = sparsity(zeros_of(encoder))
        initial = fresh(start, rows, seed).model
        initial.encoder.load_state_dict(encoder.state_dict())
        options = start.options(context.work / f"essential-{seed}-{share:.2f}", seed=seed, **settings.tuning)
        inner = workload(like, rows, dev, around(initial.encoder, like.model), options.batch_size)
        folder = trained(options, PruningWorkload(inner), len(rows), context.log)
        value = folder_points(folder, start.rows.proof)
        context.log(f"seed {seed}, {share:.2f} removed: {value:.2f}")
        return value

    return like.model.encoder, metric


def _untrained(settings: Settings, start: Start) -> SparsityCurve:
    """The fine-tuned model's curve, as the paper's abstract has it: removed and not trained again."""
    dense = load_task_model(start.dense(0))

    def metric(encoder: Encoder) -> float:
        return points(dense.model, dense, start.rows.proof)

    return sparsity_curve(dense.model.encoder, metric, settings.levels)
