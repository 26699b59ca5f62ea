"""What a run would stumble over later, refused before its first step and before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from terrazzo.errors import InputError
from terrazzo.nn import EncoderConfig
from terrazzo.optim import Schedule, ScheduleConfig
from terrazzo.train.distributed import Ranks
from terrazzo.train.memory import choose_micro_tokens
from terrazzo.train.stage import Sampling, Stage


def check_fit(encoder: EncoderConfig, sampling: Sampling, ranks: Ranks, bf16: bool) -> int:
    """The micro-batch in tokens for which a model fits in every rank's memory.

    Raises:
        InputError: it does not fit, or has too few positions for the stage's documents.
    """
    if encoder.positions == "learned" and sampling.max_len > encoder.max_len:
        raise InputError(
            f"sampling.max_len {sampling.max_len}: the model has {encoder.max_len} learned positions; lower it, or "
            f"start a model with model.fields.max_len={sampling.max_len}"
        )
    return choose_micro_tokens(encoder, sampling, ranks, bf16)


def stage_schedules(stage: Stage) -> Mapping[str, ScheduleConfig]:
    """Every scheduled value of a stage; the learning rate always is one."""
    return {"lr": Schedule(), **stage.schedules}


def check_schedules(stage: Stage, objective: Any, model: nn.Module) -> None:
    """Refuse a schedule of what neither the objective nor the optimizer has.

    Args:
        model: any of the stage's architecture; it may be empty.

    Raises:
        InputError: naming what can be scheduled.
    """
    with torch.device("meta"):
        group = stage.optimizer.build(model).param_groups[0]
    known = ["lr"]
    known += [f"objective.{name}" for name, value in vars(objective).items() if isinstance(value, float)]
    rates = ("lr", "base_lr")
    known += [f"optimizer.{name}" for name, value in group.items() if isinstance(value, float) and name not in rates]
    for name in stage_schedules(stage):
        if name not in known:
            raise InputError(f"schedules.{name}: nothing of that name can be scheduled; known: {', '.join(known)}")
