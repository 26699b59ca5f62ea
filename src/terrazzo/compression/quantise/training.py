"""Training at few bits: every forward pass sees rounded weights, gradients go to the ones behind them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from terrazzo.compression.around import StageAround
from terrazzo.compression.quantise.grids import nearest
from terrazzo.compression.quantise.plan import BitPlan, check_plan, full_name
from terrazzo.config import to_dict
from terrazzo.errors import InputError
from terrazzo.tasks.model import TaskModel
from terrazzo.train.distributed import Ranks
from terrazzo.train.run import RunConfig
from terrazzo.train.workload import StageStart, StageWork, Workload


def straight_through(weight_OI: Tensor, bits: int, group: int) -> Tensor:
    """A matrix rounded to its groups' grids; gradients pass as if it were not.

    Reference: Q-BERT (arXiv 1909.05840), its uniform quantiser and straight-through estimator.
    """
    rounded_OI = nearest(weight_OI.detach(), bits, group).values().to(weight_OI)
    return rounded_OI + (weight_OI - weight_OI.detach())


class Rounding:
    """Rounds a model's matrices by a plan in each of its forward passes; its parameters stay what they are.

    Raises:
        InputError: a matrix that the model has not.
    """

    def __init__(self, model: TaskModel, plan: BitPlan) -> None:
        check_plan(model, plan)
        self.model, self.plan = model, plan
        self._handles = [
            model.register_forward_pre_hook(self._put),
            model.register_forward_hook(self._take, always_call=True),
        ]

    def remove(self) -> None:
        """Let go of the model."""
        for handle in self._handles:
            handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy of the model takes along; its hooks are copied with it, their handles are not."""
        return {**self.__dict__, "_handles": []}

    def _owners(self) -> list[tuple[nn.Module, int]]:
        paths = [(full_name(self.model, name).removesuffix(".weight"), bits) for name, bits in self.plan.bits.items()]
        return [(self.model.get_submodule(path), bits) for path, bits in paths]

    def _put(self, *_: Any) -> None:
        for module, bits in self._owners():
            # An attribute of the instance hides the parameter of that name, which optimizers and state dicts still see.
            module.__dict__["weight"] = straight_through(module.get_parameter("weight"), bits, self.plan.group)

    def _take(self, *_: Any) -> None:
        for module, _bits in self._owners():
            module.__dict__.pop("weight", None)


@torch.no_grad()
def round_in_place(model: TaskModel, plan: BitPlan) -> None:
    """Give every matrix of a plan its rounded values; those of `requantise`."""
    check_plan(model, plan)
    state = model.state_dict()
    for name, bits in plan.bits.items():
        weight = state[full_name(model, name)]
        weight.copy_(nearest(weight, bits, plan.group).values())


@dataclass(frozen=True)
class RoundedWorkload:
    """A workload of a task, with or without a teacher, whose model is trained at the bits of a plan.

    Checkpoints hold the weights behind the rounded ones; the model at the end is rounded, so that
    `requantise(model, plan)` packs it without loss. Start from `quantise(model, ...).model`.

    Args:
        inner: what is learned; its models are task models.
    """

    inner: Workload
    plan: BitPlan

    @property
    def fingerprint(self) -> str:
        described = json.dumps([self.inner.fingerprint, to_dict(self.plan)], sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()[:16]

    def describe(self) -> Mapping[str, Any]:
        """What the workload inside says, and the bits."""
        return {**self.inner.describe(), "rounding": to_dict(self.plan)}

    def check(self, config: RunConfig, ranks: Ranks, dtype: torch.dtype) -> None:
        """Refuse what the workload inside refuses, and sharded weights.

        Raises:
            InputError: naming the field and the mend.
        """
        if ranks.world_size > 1 and config.distributed == "fsdp2":
            raise InputError("distributed: fsdp2 shards the weights that are rounded; use ddp")
        self.inner.check(config, ranks, dtype)

    def begin(self, start: StageStart) -> RoundedStage:
        """The stage of the workload inside, its model's matrices rounded.

        Raises:
            InputError: the stage cannot be begun, or its model lacks a matrix of the plan.
        """
        return RoundedStage(self.plan, self.inner.begin(start))

    def finish(self, run: Path, model: nn.Module, provenance: Mapping[str, Any]) -> None:
        """As the workload inside, of the rounded model."""
        assert isinstance(model, TaskModel)
        round_in_place(model, self.plan)
        self.inner.finish(run, model, {**provenance, "quantised": to_dict(self.plan)})


class RoundedStage(StageAround):
    """A stage whose model is rounded in every forward pass; checkpoints hold the weights behind the rounded ones."""

    def __init__(self, plan: BitPlan, inner: StageWork) -> None:
        assert isinstance(inner.model, TaskModel)
        super().__init__(inner)
        self.rounding = Rounding(inner.model, plan)
