"""oBERT against magnitude: pruned at once without training, and gradually while a dense teacher is followed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from recipes.claims import Tier
from recipes.compressed import TINY, Start, begin, drawn, folder_points, points, trained, workload
from recipes.runner import Context
from terrazzo.compression import (
    DistillConfig,
    DistillWorkload,
    MagnitudePruner,
    Masks,
    ObertConfig,
    ObertPruner,
    PruningWorkload,
    SparsitySchedule,
    TaskGradients,
    examples_of,
    magnitude,
    obert,
    single_matrices,
)
from terrazzo.compression.masks import sparsity, zeros_of
from terrazzo.tasks import Example
from terrazzo.tasks.labelled import LabelledRows
from terrazzo.tasks.model import LoadedTask, load_task_model


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One tier.

    Args:
        rows: that are trained on; proof: that judge.
        at_once: sparsity of the pruning without training.
        schedule: of the gradual one; tuning: of the training around it.
        examples: whose gradients a Fisher matrix is made of.
        remembered: bytes that the teacher's answers may take between epochs.
    """

    task: str = "sst2"
    rows: int | None = None
    proof: int | None = None
    at_once: float = 0.7
    schedule: SparsitySchedule = SparsitySchedule(start=0.5, end=0.8, begin=0.02, finish=0.4, times=3)
    tuning: Mapping[str, Any] = field(default_factory=dict)
    fisher: ObertConfig = ObertConfig()
    examples: int = 256
    distill: DistillConfig = DistillConfig(labels=0.0, outputs=1.0, temperature=2.0)
    remembered: int = 0
    seeds: int = 3


SETTINGS = {
    "smoke": Settings(tuning=TINY, fisher=ObertConfig(block=16, damp=1e-5), examples=8, seeds=1),
    "small": Settings(
        tuning={"lr": (2e-4,), "epochs": 4.0},
        fisher=ObertConfig(block=24),
        distill=DistillConfig(labels=0.0, outputs=1.0, hidden=1.0, temperature=2.0),
        remembered=4 * 2**30,
    ),
}


def run(tier: Tier, context: Context) -> dict[int, dict[str, float]]:
    """Points by seed, which draws the rows, their order and the examples of the Fisher matrices."""
    settings = SETTINGS[tier]
    context.record("config", settings)
    start = begin(tier, settings.task, context, settings.proof)
    dense = load_task_model(start.dense(0))
    whole = points(dense.model, dense, start.rows.proof)
    context.log(f"dense: {whole:.2f}")
    metrics: dict[int, dict[str, float]] = {}
    for seed in range(settings.seeds):
        rows = drawn(start.rows.train, settings.rows, seed)
        metrics[seed] = {
            "dense": whole,
            **_at_once(settings, start, drawn(rows, settings.examples, seed)),
            **_gradual(settings, start, dense, whole, rows, seed, context),
        }
        context.log(f"seed {seed}: {metrics[seed]}")
    return metrics


def _at_once(settings: Settings, start: Start, rows: list[Example]) -> dict[str, float]:
    """What is left of the dense model when one pruning takes it all, by both prices."""
    found = {}
    for arm in ("magnitude", "obert"):
        loaded = load_task_model(start.dense(0))
        views = single_matrices(loaded.model.encoder)
        if arm == "magnitude":
            keep = magnitude(views, settings.at_once)
        else:
            examples = examples_of(LabelledRows.encode(loaded.model.task, rows, loaded.tokenizer, loaded.max_len))
            keep = obert(views, TaskGradients(loaded.model, examples), settings.at_once, settings.fisher).keep
        Masks(loaded.model.encoder, keep).remove()
        found[f"one_shot_{arm}"] = points(loaded.model, loaded, start.rows.proof)
    return {**found, "one_shot_gain": found["one_shot_obert"] - found["one_shot_magnitude"]}


def _gradual(
    settings: Settings,
    start: Start,
    dense: LoadedTask,
    whole: float,
    rows: list[Example],
    seed: int,
    context: Context,
) -> dict[str, float]:
    """The same training twice, pruned by either price at the same steps."""
    pruners: dict[str, Callable[[], MagnitudePruner | ObertPruner]] = {
        "magnitude": MagnitudePruner,
        "obert": lambda: ObertPruner(settings.fisher, settings.examples),
    }
    found = {}
    for arm, pruner in pruners.items():
        options = start.options(context.work / f"obert-{arm}-{seed}", seed=seed, **settings.tuning)
        inner = workload(dense, rows, start.rows.dev, dense.model, options.batch_size)
        distilled = DistillWorkload(
            inner=inner, teacher=dense.model, options=settings.distill, remembered=settings.remembered
        )
        folder = trained(options, PruningWorkload(distilled, settings.schedule, pruner()), len(rows), context.log)
        found[f"gradual_{arm}"] = folder_points(folder, start.rows.proof)
    left = sparsity(zeros_of(load_task_model(folder).model.encoder))
    drop, gain = whole - found["gradual_obert"], found["gradual_obert"] - found["gradual_magnitude"]
    return {**found, "drop": drop, "gain": gain, "sparsity": left}
