"""The training loop's view of learning from a teacher: an objective, and a workload around a labelled task."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from terrazzo.compression.database import encoder_fingerprint, tensors_fingerprint
from terrazzo.compression.distill import (
    DistillConfig,
    Taps,
    answers_loss,
    check_pair,
    hidden_loss,
    relations_loss,
    tapped,
)
from terrazzo.compression.taught import Taught
from terrazzo.config import to_dict
from terrazzo.errors import InputError
from terrazzo.nn import forward_flops
from terrazzo.objectives import Loss, Supervised, SupervisedConfig
from terrazzo.packed import Packed
from terrazzo.tasks.model import TaskModel
from terrazzo.tasks.training import TaskStage, TaskWorkload
from terrazzo.train.distributed import Ranks
from terrazzo.train.run import RunConfig
from terrazzo.train.workload import StageStart


class Distilled(Supervised):
    """The objective: the task's own loss and the distance to a teacher, each by its weight.

    What is a mean over tokens (`hidden`, `relations`) counts once a prediction.

    Args:
        config: options of the task's own loss.
        teacher: of the same task; moved to the batch's device, run without dropout and gradients.
        remembered: bytes of what the teacher said that are kept, so that later passes over the rows need not ask again.
    """

    def __init__(
        self, config: SupervisedConfig, teacher: TaskModel, options: DistillConfig, remembered: int = 0
    ) -> None:
        super().__init__(config)
        self.teacher, self.options = teacher.eval().requires_grad_(False), options
        self.memory = Taught(teacher.task, remembered)

    @property
    def labels_alone(self) -> Supervised:
        """The task's own objective: at the teacher itself the distance to it has no gradient to prune by."""
        return Supervised(self.config)

    def loss(self, model: TaskModel | Any, batch: Packed) -> Loss:
        """The weighted sum; logs what the task's own loss logs."""
        options = self.options
        pairs = options.pairs(model.config, self.teacher.config)
        hidden, related = pairs if options.hidden else [], options.related(pairs)
        taught, theirs = self._taught(batch, [b for _, b in hidden], [b for _, b in related])
        with tapped(model.encoder, [a for a, _ in hidden], [a for a, _ in related]) as mine:
            outputs = model(batch)
        own = model.task.loss(outputs, batch, self.config)
        total = options.labels * own.sum
        if options.outputs:
            total = total + options.outputs * answers_loss(model.task, outputs, taught, batch, options.temperature)
        if hidden:
            states = [mine.hidden[a] for a, _ in hidden], [theirs.hidden[b] for _, b in hidden]
            total = total + options.hidden * own.weight * hidden_loss(*states)
        for a, b in related:
            parts = mine.qkv[a], theirs.qkv[b]
            apart = relations_loss(*parts, batch, options.relation_heads, options.relation_kind)
            total = total + options.relations * own.weight * apart
        return Loss(sum=total, weight=own.weight, logs=own.logs)

    def _taught(self, batch: Packed, hidden: Sequence[int], qkv: Sequence[int]) -> tuple[Tensor, Taps]:
        """The teacher's outputs, and what its blocks gave."""
        known = self.memory.recall(batch)
        if known is not None:
            return known
        with torch.no_grad(), tapped(self.teacher.encoder, hidden, qkv) as taps:
            outputs = self.teacher.to(batch.device)(batch)
        self.memory.keep(batch, outputs, taps)
        return outputs, taps


@dataclass(frozen=True, kw_only=True)
class DistillWorkload:
    """A labelled task learnt from a teacher: a workload of the training loop.

    Args:
        inner: the task, its rows, and the student it begins with.
        remembered: bytes of what the teacher said that are kept in memory, in fp16; see `Taught`.
    """

    inner: TaskWorkload
    teacher: TaskModel
    options: DistillConfig
    remembered: int = 0

    @property
    def fingerprint(self) -> str:
        described = json.dumps(self.describe(), sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()[:16]

    def describe(self) -> Mapping[str, Any]:
        """What the workload inside says, the teacher and what is learnt from it."""
        head = tensors_fingerprint(self.teacher.head.state_dict())
        teacher = {"encoder": encoder_fingerprint(self.teacher.encoder), "head": head, "options": to_dict(self.options)}
        return {**self.inner.describe(), "teacher": teacher}

    def check(self, config: RunConfig, ranks: Ranks, dtype: torch.dtype) -> None:
        """Refuse what the workload inside refuses, and a teacher that does not fit.

        Raises:
            InputError: naming the field and the mend.
        """
        if self.inner.adapter is not None and self.inner.adapter.paced:
            raise InputError(f"adapter {self.inner.adapter.kind!r} has a loss of its own: distil without it")
        if to_dict(self.teacher.task) != to_dict(self.inner.task):
            raise InputError("teacher: of another task, or of other classes, than the rows")
        self.inner.check(config, ranks, dtype)

    def begin(self, start: StageStart) -> DistillStage:
        """The stage of the workload inside, with the teacher beside its model.

        Raises:
            InputError: the stage cannot be begun, or the teacher does not fit its model.
        """
        return DistillStage(self, start)

    def finish(self, run: Path, model: nn.Module, provenance: Mapping[str, Any]) -> None:
        """As the workload inside."""
        self.inner.finish(run, model, provenance)


class DistillStage(TaskStage):
    """A stage of a labelled task whose loss is the distance to a teacher."""

    def __init__(self, workload: DistillWorkload, start: StageStart) -> None:
        super().__init__(workload.inner, start)
        check_pair(workload.options, self.model.config, workload.teacher.config)
        teacher = copy.deepcopy(workload.teacher)
        self.rows.follow(teacher)
        self.objective = Distilled(self.objective.config, teacher, workload.options, workload.remembered)

    def flops(self, batches: Sequence[Packed]) -> float:
        """Those of the student's training, and of the teacher's forward passes."""
        assert isinstance(self.objective, Distilled)
        taught = sum(forward_flops(self.objective.teacher.config, batch.lengths) for batch in batches)
        return super().flops(batches) + taught
