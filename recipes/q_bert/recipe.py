"""Q-BERT: dense models against few bits a weight, by layer and in groups, uniform and mixed, trained or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from recipes.claims import Tier
from recipes.compressed import TINY, Start, begin, drawn, folder_points, packed_rows, points, trained, workload
from recipes.runner import Context
from terrazzo.checkpoint.packing import PACKED_WEIGHTS
from terrazzo.compression import DistillConfig, DistillWorkload, examples_of
from terrazzo.compression.quantise import (
    BitPlan,
    Quantised,
    QuantiseOptions,
    RoundedWorkload,
    quantise,
    requantise,
    save_packed,
    sensitivity,
    weights_of,
)
from terrazzo.compression.quantise.bits import evaluating
from terrazzo.compression.quantise.grids import nearest
from terrazzo.compression.quantise.spectrum import task_loss
from terrazzo.packed import Packed
from terrazzo.tasks import TaskModel
from terrazzo.tasks.labelled import LabelledRows
from terrazzo.tasks.model import HEAD, LoadedTask, load_task_model


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One tier.

    Args:
        rows: of each task that are trained on, None for all; tuning: of that training.
        proof: rows that judge; calibration: rows that rounding knows the inputs from.
        factors: how much smaller than fp32 the files are to be, by the metrics' names.
        group: see `QuantiseOptions`; 0 is a row.
        shares, share_rows: parts of the training data, and rows of each, that Omega is taken over.
    """

    rows: Mapping[str, int | None] = field(default_factory=lambda: {"sst2": 12_000, "mrpc": None})
    tuning: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    proof: int | None = None
    calibration: int = 256
    factors: Mapping[str, float] = field(default_factory=lambda: {"8x": 8.0, "13x": 13.0})
    group: int = 128
    distill: DistillConfig = DistillConfig(labels=0.0, outputs=1.0, temperature=2.0, hidden=1.0)
    shares: int = 4
    share_rows: int = 8
    seeds: int = 3


SETTINGS = {
    "smoke": Settings(
        tuning={"sst2": TINY, "mrpc": TINY},
        calibration=16,
        factors={"8x": 2.2, "13x": 2.6},
        group=16,
        shares=2,
        share_rows=4,
        seeds=1,
    ),
    "small": Settings(
        proof=2_500, tuning={"sst2": {"lr": (1e-4,), "epochs": 1.0}, "mrpc": {"lr": (1e-4,), "epochs": 4.0}}
    ),
}


def run(tier: Tier, context: Context) -> dict[int, dict[str, float]]:
    """Points, losses and sizes by seed, which draws the calibration rows, those that are trained on and their order."""
    settings = SETTINGS[tier]
    context.record("config", settings)
    metrics: dict[int, dict[str, float]] = {seed: {} for seed in range(settings.seeds)}
    plans: dict[str, Any] = {}
    for name in settings.rows:
        start = begin(tier, name, context, settings.proof)
        dense = load_task_model(start.dense(0))
        dense.model.eval()
        for seed in metrics:
            arms = _Arms(settings, start, dense, seed, context)
            found = arms.one_shot() | (arms.choices() if name == "sst2" else {}) | arms.trained()
            metrics[seed] |= {f"{name}_{metric}": value for metric, value in found.items()}
            plans[f"{name}, seed {seed}"] = arms.plans
            context.log(f"{name}, seed {seed}: {found}")
    context.record("bits", plans)
    return metrics


class _Arms:
    """The arms of one task and seed."""

    def __init__(self, settings: Settings, start: Start, dense: LoadedTask, seed: int, context: Context) -> None:
        self.settings, self.start, self.dense, self.seed, self.context = settings, start, dense, seed, context
        self.options = QuantiseOptions(group=settings.group)
        self.rows = drawn(start.rows.train, settings.rows[start.name], seed)
        self.calibration = list(packed_rows(dense, self.rows[: settings.calibration], 1024))
        self.judging = list(packed_rows(dense, start.rows.proof))
        self.floats = 4 * sum(parameter.numel() for parameter in dense.model.parameters())
        self.whole = points(dense.model, dense, start.rows.proof)
        self.plans: dict[str, dict[str, int]] = {}

    def one_shot(self) -> dict[str, float]:
        """Without training: one range a matrix, ranges of groups, ours at 4, 3 and 2 bits, and by the file's size."""
        model, judge = self.dense.model, self.start.rows.proof
        layers = points(_by_layer(model, 4), self.dense, judge)
        plain = QuantiseOptions(group=self.settings.group, fit="range", rounding="nearest")
        groups = points(quantise(model, bits=4, options=plain).model, self.dense, judge)
        found = {"dense": self.whole, "layer_4": layers, "group_4": groups, "group_gain": groups - layers}
        for bits in (4, 3, 2):
            few = quantise(model, self.calibration, bits=bits, options=self.options)
            found[f"bits_{bits}"] = points(few.model, self.dense, judge)
            found[f"factor_bits_{bits}"] = self.floats / few.bytes
        small = self._by_factor("8x")
        folder = self._saved(small, "8x")
        size = _size(folder)
        found |= {"factor_8x": self.floats / size, "unsaid_bytes": abs(size - small.bytes)}
        return found | {"drop_8x": self.whole - folder_points(folder, judge)}

    def choices(self) -> dict[str, float]:
        """Bits by measured sensitivity and by Omega, in the bytes of 3 bits throughout: the loss on rows that judge."""
        model = self.dense.model
        uniform = quantise(model, self.calibration, bits=3, options=self.options)
        shares = LabelledRows.encode(model.task, self.rows, self.dense.tokenizer, self.dense.max_len)
        count = self.settings.share_rows
        some = examples_of(shares, count * self.settings.shares)
        bent = sensitivity(model, [some[i : i + count] for i in range(0, len(some), count)], seed=self.seed, starts=1)
        made = {
            "uniform": uniform,
            "mixed": quantise(model, self.calibration, budget=uniform.bytes, options=self.options),
            "hessian": quantise(model, self.calibration, budget=uniform.bytes, options=self.options, sensitivity=bent),
        }
        self.plans |= {name: dict(one.plan.bits) for name, one in made.items()}
        losses = {f"{name}_loss": _loss(one.model, self.judging) for name, one in made.items()}
        return {**losses, "dense_loss": _loss(model, self.judging)}

    def trained(self) -> dict[str, float]:
        """As small as the second factor says: not trained, and trained at those bits with the dense model to follow."""
        small = self._by_factor("13x")
        before = points(small.model, self.dense, self.start.rows.proof)
        work = self.context.work / f"q-bert-{self.start.name}-{self.seed}"
        options = self.start.options(work, seed=self.seed, **self.settings.tuning[self.start.name])
        inner = workload(self.dense, self.rows, self.start.rows.dev, small.model, options.batch_size)
        distilled = DistillWorkload(inner=inner, teacher=self.dense.model, options=self.settings.distill)
        folder = trained(options, RoundedWorkload(distilled, small.plan), len(self.rows), self.context.log)
        packed = self._saved(requantise(load_task_model(folder).model, small.plan), "13x")
        after = folder_points(packed, self.start.rows.proof)
        return {
            "factor_13x": self.floats / _size(packed),
            "one_shot_13x": before,
            "trained_13x": after,
            "drop_13x": self.whole - after,
        }

    def _by_factor(self, name: str) -> Quantised[TaskModel]:
        budget = int(self.floats / self.settings.factors[name])
        small = quantise(self.dense.model, self.calibration, budget=budget, options=self.options)
        self.plans[name] = dict(small.plan.bits)
        return small

    def _saved(self, small: Quantised[TaskModel], name: str) -> Path:
        folder = self.context.work / f"q-bert-packed-{self.start.name}-{name}-{self.seed}"
        return save_packed(folder, small, self.start.dense(0) / "tokenizer.json", max_len=self.dense.max_len)


def _by_layer(model: TaskModel, bits: int) -> TaskModel:
    """Every matrix with one range for all its entries, to the nearest; the head keeps 8 bits."""
    small = requantise(model, BitPlan(bits={})).model
    plain = QuantiseOptions(fit="range", rounding="nearest")
    for name, weight in weights_of(small).items():
        own = plain.head_bits if name.startswith("head.") else bits
        weight.data.copy_(nearest(weight.view(1, -1), own, 0).values().view_as(weight))
    return small


@torch.no_grad()
def _loss(model: TaskModel, batches: Sequence[Packed]) -> float:
    with evaluating(model):
        return float(task_loss(model, batches))


def _size(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in (PACKED_WEIGHTS, HEAD))
