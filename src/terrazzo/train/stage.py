"""A run as data: stages, each with a model source, objective, data order, optimizer, schedules and budget."""

from __future__ import annotations

import re
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field

from terrazzo.config import config, from_dict, nearest, to_dict
from terrazzo.errors import InputError
from terrazzo.nn import FAMILIES, SIZES, EncoderConfig
from terrazzo.objectives import MLMConfig, ObjectiveConfig
from terrazzo.optim import MuonConfig, OptimizerConfig, Schedule, ScheduleConfig


@config
class Budget:
    """How long a stage lasts: exactly one of the three.

    Args:
        steps: optimizer steps.
        tokens: tokens seen, special tokens included.
        seconds: wall-clock time of training and evaluation, over all resumptions; the schedule ends with it.
    """

    steps: int | None = None
    tokens: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.steps, self.tokens, self.seconds) if value is not None]
        if len(given) != 1 or not given[0] > 0:
            raise InputError("a budget is one positive number of steps, tokens or seconds")

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read `3000steps`, `20Mtok`, `1.5Gtok`, `90s`, `10m` or `2h`.

        Raises:
            InputError: anything else.
        """
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:(k|M|G|B|T)?\s*(steps?|tok(?:ens)?)|(s|m|min|h|d))", text.strip())
        if match is None:
            raise InputError(f"budget {text!r}: write it as 10m, 2h, 20Mtok or 3000steps")
        number = float(match[1]) * {None: 1, "k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}[match[2]]
        if match[4]:
            return cls(seconds=number * {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}[match[4]])
        return cls(steps=round(number)) if match[3].startswith("step") else cls(tokens=round(number))


@config
class Init:
    """A new encoder: a family and size, with any field of `EncoderConfig` overridden."""

    kind: Literal["init"] = "init"
    family: str = "mosaicbert"
    size: str = "base"
    fields: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise InputError(f"family {self.family!r}: {nearest(self.family, FAMILIES)}")
        if self.size not in SIZES:
            raise InputError(f"size {self.size!r}: {nearest(self.size, SIZES)}")

    def encoder_config(self, vocab_size: int) -> EncoderConfig:
        """The architecture for a vocabulary.

        Raises:
            InputError: an overridden field that `EncoderConfig` does not have, or a value that it refuses.
        """
        known = set(EncoderConfig.__dataclass_fields__) - {"vocab_size"}
        for name in self.fields:
            if name == "vocab_size":
                raise InputError("model.fields.vocab_size: the data's tokenizer decides it; leave it out")
            if name not in known:
                raise InputError(f"model.fields.{name}: unknown field: {nearest(name, known)}")
        sized = FAMILIES[self.family](self.size, vocab_size)
        return from_dict(EncoderConfig, {**to_dict(sized), **self.fields}, "model.fields")


@config
class FromFolder:
    """A model folder, ours or a published one, to go on training from; `transform` may grow or shrink it."""

    kind: Literal["folder"] = "folder"
    path: str
    transform: str | None = None


@config
class Previous:
    """The result of the stage before.

    Args:
        transform: `module:function` of a pure function (state dict, EncoderConfig) -> (state dict, EncoderConfig).
    """

    kind: Literal["previous"] = "previous"
    transform: str | None = None


ModelSource = Annotated[Init | FromFolder | Previous, Field(discriminator="kind")]


@config
class Sampling:
    """Which tokens a step sees.

    Args:
        max_len: longest packed document, special tokens included; longer ones are cut into pieces.
        batch_tokens: tokens of one optimizer step over all ranks, on average; the number of pieces follows from it.
        micro_tokens: most tokens of one forward pass; None takes what fits in memory and runs fast.
        workers: threads that prepare batches ahead; 0 prepares them in line. The stream does not depend on it.
    """

    max_len: int = 128
    batch_tokens: int = 16_384
    micro_tokens: int | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        for name, least in (("max_len", 3), ("batch_tokens", 1), ("micro_tokens", 1), ("workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} must be at least {least}, got {value}")


@config
class Stage:
    """One part of a run; every training method is a value of these fields.

    Args:
        schedules: by name of the value they set: "lr" multiplies every group's learning rate, "objective.rate" is the
            masking rate.
        clip_norm: largest gradient norm, None for no clipping.
        patience: evaluations without a better score after which the stage ends; None trains to the end of the budget.
        keep_best: the stage's result is the model of its best evaluation, not the last one.
    """

    name: str = "pretrain"
    model: ModelSource = field(default_factory=Init)
    objective: ObjectiveConfig = field(default_factory=MLMConfig)
    sampling: Sampling = field(default_factory=Sampling)
    optimizer: OptimizerConfig = field(default_factory=MuonConfig)
    schedules: dict[str, ScheduleConfig] = field(default_factory=lambda: {"lr": Schedule()})
    budget: Budget = field(default_factory=lambda: Budget(steps=1000))
    clip_norm: float | None = 1.0
    patience: int | None = None
    keep_best: bool = False

    def __post_init__(self) -> None:
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise InputError(f"clip_norm must be above 0, got {self.clip_norm}")
        if self.patience is not None and self.patience < 1:
            raise InputError(f"patience must be at least 1, got {self.patience}")
