"""Pruning while a model trains: a cubic schedule, and a workload of the training loop that follows it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from terrazzo.compression.around import StageAround
from terrazzo.compression.distill_workload import Distilled
from terrazzo.compression.gradients import GradientStream, LossGradients
from terrazzo.compression.masks import Masks, read_masks, single_matrices
from terrazzo.compression.unstructured import ObertConfig, magnitude, obert
from terrazzo.config import config, to_dict
from terrazzo.data import StepSource
from terrazzo.errors import InputError
from terrazzo.nn import Encoder
from terrazzo.objectives import Loss
from terrazzo.optim import Ramp, ScheduleConfig
from terrazzo.packed import Packed
from terrazzo.train.distributed import Ranks
from terrazzo.train.run import RunConfig
from terrazzo.train.workload import StageStart, StageWork, Workload

#: What a stage's `schedules` must hold: the loop tells the objective how far the stage is, for resuming as well.
PROGRESS: dict[str, ScheduleConfig] = {"objective.progress": Ramp(start=0.0, end=1.0)}


def cubic(start: float, end: float, share: float) -> float:
    """From `start` at share 0 to `end` at share 1, steep first: end + (start - end) (1 - share)^3.

    Reference: Zhu and Gupta (arXiv 1710.01878), Eq. 1.
    """
    return end + (start - end) * (1 - share) ** 3


@config
class SparsitySchedule:
    """When a stage prunes and how far.

    Args:
        start, end: sparsity after the first and after the last pruning.
        begin, finish: progress of the stage at those two.
        times: prunings, evenly spaced.

    Reference: oBERT (arXiv 2203.07259), its recipe of 30 epochs: from 0.7 in seven steps, at epochs 2 to 26.
    """

    start: float = 0.7
    end: float = 0.9
    begin: float = 2 / 30
    finish: float = 26 / 30
    times: int = 7

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1:
            raise InputError(f"sparsity from {self.start} to {self.end}: shares of the weights, rising")
        if not 0 <= self.begin <= self.finish <= 1:
            raise InputError(f"pruning from {self.begin} to {self.finish}: shares of the stage, rising")
        if self.times < 1:
            raise InputError(f"times: at least one pruning, got {self.times}")

    @property
    def levels(self) -> tuple[float, ...]:
        """The sparsity after each pruning."""
        last = max(1, self.times - 1)
        return tuple(cubic(self.start, self.end, n / last) if self.times > 1 else self.end for n in range(self.times))

    def done(self, progress: float) -> int:
        """How many prunings are due by `progress`."""
        if progress < self.begin:
            return 0
        span = (self.finish - self.begin) / max(1, self.times - 1)
        passed = (progress - self.begin) / span if span else math.inf
        return min(self.times, 1 + math.floor(min(passed, self.times) + 1e-9))


#: Per-example gradients at the present weights, on so many of the stage's first documents: of its loss, of a distilled
#: one's labels alone.
Gradients = Callable[[int], GradientStream]


class Pruner(Protocol):
    """A way to choose what goes, by plain values that run.json keeps."""

    def __call__(
        self, encoder: Encoder, target: float, keep: Mapping[str, Tensor], gradients: Gradients
    ) -> Mapping[str, Tensor]:
        """What stays of the encoder's matrices at this sparsity; it may move the weights."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """What decides its choices."""
        ...


@dataclass(frozen=True)
class MagnitudePruner:
    """The smallest weights of all matrices go."""

    group: int = 1

    def __call__(
        self, encoder: Encoder, target: float, keep: Mapping[str, Tensor], gradients: Gradients
    ) -> Mapping[str, Tensor]:
        return magnitude(single_matrices(encoder), target, self.group, keep)

    def describe(self) -> Mapping[str, Any]:
        return {"kind": "magnitude", "group": self.group}


@dataclass(frozen=True)
class ObertPruner:
    """oBERT on the gradients of `examples` documents, at the weights that training has reached."""

    options: ObertConfig = ObertConfig()
    examples: int = 1024

    def __call__(
        self, encoder: Encoder, target: float, keep: Mapping[str, Tensor], gradients: Gradients
    ) -> Mapping[str, Tensor]:
        return obert(single_matrices(encoder), gradients(self.examples), target, self.options, keep).keep

    def describe(self) -> Mapping[str, Any]:
        return {"kind": "obert", "examples": self.examples, **to_dict(self.options)}


def encoder_of(model: nn.Module) -> Encoder:
    """The encoder inside a model."""
    encoder = model.get_submodule("encoder")
    assert isinstance(encoder, Encoder)
    return encoder


class PruningObjective:
    """An objective that prunes before the loss of a step whose progress asks for it.

    `progress` is the loop's to set; whatever else it sets goes to the objective inside.
    """

    _OWN = ("inner", "stream", "masks", "schedule", "pruner", "progress", "pruned")

    def __init__(self, work: StageWork, masks: Masks, schedule: SparsitySchedule | None, pruner: Pruner) -> None:
        self.inner, self.stream = work.objective, work.stream
        self.masks, self.schedule, self.pruner = masks, schedule, pruner
        # Prunings that the masks show as done: all of a checkpoint's, and those that a sparse model does not need.
        levels = schedule.levels if schedule is not None else ()
        self.progress, self.pruned = 0.0, sum(masks.sparsity >= level - masks.grain for level in levels)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self.inner, name, value)

    def corrupt(self, batch: Packed, seed: int, *, evaluation: bool = False) -> Packed:
        """As the objective inside does."""
        corrupted: Packed = self.inner.corrupt(batch, seed, evaluation=evaluation)
        return corrupted

    def loss(self, model: Any, batch: Packed) -> Loss:
        """The loss of the objective inside, after what pruning is due."""
        self.prune_if_due(model)
        loss: Loss = self.inner.loss(model, batch)
        return loss

    def prune_if_due(self, model: nn.Module) -> None:
        """Prune to the level of the latest pruning that is due; of several at once only the last is done."""
        if self.schedule is None or (due := self.schedule.done(self.progress)) <= self.pruned:
            return
        target = self.schedule.levels[due - 1]
        with torch.autocast(next(model.parameters()).device.type, enabled=False):
            gradients = partial(self._gradients, model)
            self.masks.set(self.pruner(self.masks.encoder, target, self.masks.keep, gradients))
        self.pruned = due

    def _gradients(self, model: nn.Module, count: int) -> GradientStream:
        device = self.masks.encoder.embeddings.tokens.weight.device
        examples = [self.inner.corrupt(batch, self.stream.seed) for batch in first_pieces(self.stream, count)]
        learned = self.inner.labels_alone if isinstance(self.inner, Distilled) else self.inner
        return LossGradients(model, [example.to(device) for example in examples], learned.loss)


def first_pieces(stream: StepSource, count: int) -> list[Packed]:
    """The first `count` pieces of a stage, or those of one pass, each a batch."""
    pieces: list[Packed] = []
    step = 0
    while len(pieces) < count:
        plan = stream.step(step)
        fresh = plan.epochs == 0
        if not fresh.any():
            break
        rows = plan.pieces[fresh][: count - len(pieces)]
        pieces += [stream.pack(rows[i : i + 1], plan.epochs[:1]) for i in range(len(rows))]
        step += 1
    return pieces


@dataclass(frozen=True)
class PruningWorkload:
    """A workload whose model is pruned while it trains, or, without a schedule, keeps the zeros that it has.

    Give its stages `schedules={**PROGRESS, ...}`. Weights of the blocks that are zero at the start stay zero.

    Args:
        inner: what is learned; its models have an `encoder`.
        schedule: None trains with fixed masks, as sparse transfer does.
    """

    inner: Workload
    schedule: SparsitySchedule | None = None
    pruner: Pruner = MagnitudePruner()

    @property
    def fingerprint(self) -> str:
        described = json.dumps([self.inner.fingerprint, self._described()], sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()[:16]

    def describe(self) -> Mapping[str, Any]:
        """What the workload inside says, and how its model is pruned."""
        return {**self.inner.describe(), "pruning": self._described()}

    def _described(self) -> Mapping[str, Any]:
        return {"schedule": to_dict(self.schedule), "pruner": self.pruner.describe()}

    def check(self, config: RunConfig, ranks: Ranks, dtype: torch.dtype) -> None:
        """Refuse stages that would not end at the sparsity asked for, and what the workload inside refuses.

        Raises:
            InputError: naming the stage's field and the mend.
        """
        if ranks.world_size > 1 and config.distributed == "fsdp2":
            raise InputError("distributed: fsdp2 shards the weights that masks are for; use ddp")
        for stage in config.stages:
            if self.schedule is None:
                continue
            if any(stage.schedules.get(name) != ramp for name, ramp in PROGRESS.items()):
                raise InputError(
                    f"stage {stage.name}: pruning follows its progress; add schedules.objective.progress, "
                    "a ramp from 0 to 1"
                )
            if stage.keep_best or stage.patience is not None:
                raise InputError(
                    f"stage {stage.name}: its best evaluation may come before the last pruning; set "
                    "keep_best to false and patience to none"
                )
        stages = tuple(replace(stage, schedules=_without_progress(stage.schedules)) for stage in config.stages)
        self.inner.check(replace(config, stages=stages), ranks, dtype)

    def begin(self, start: StageStart) -> PruningStage:
        """The stage of the workload inside, its model masked.

        Raises:
            InputError: the stage cannot be begun.
        """
        return PruningStage(self, self.inner.begin(start), start.resumed)

    def finish(self, run: Path, model: nn.Module, provenance: Mapping[str, Any]) -> None:
        """As the workload inside does; the zeros are in the weights."""
        self.inner.finish(run, model, provenance)


class PruningStage(StageAround):
    """A stage whose model is masked; its checkpoints hold the masks beside the weights."""

    def __init__(self, workload: PruningWorkload, inner: StageWork, resumed: Path | None) -> None:
        super().__init__(inner)
        self.masks = Masks(encoder_of(inner.model), read_masks(resumed) if resumed is not None else None)
        self.objective = PruningObjective(inner, self.masks, workload.schedule, workload.pruner)

    def evaluate(self, module: nn.Module, ranks: Ranks, autocast: AbstractContextManager[None]) -> Mapping[str, Any]:
        """The figures of the stage inside, and the sparsity."""
        return {**self.inner.evaluate(module, ranks, autocast), "sparsity": self.masks.sparsity}

    def write(self, folder: Path, state: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> None:
        """The model's files, and the masks."""
        self.inner.write(folder, state, provenance)
        self.masks.save(folder)


def _without_progress(schedules: Mapping[str, ScheduleConfig]) -> dict[str, ScheduleConfig]:
    return {name: schedule for name, schedule in schedules.items() if name not in PROGRESS}
