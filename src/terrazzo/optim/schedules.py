"""Scheduled values: pure functions of the progress of a stage, which runs from 0 to 1.

Progress is steps, tokens or seconds spent, over the budget; a schedule does not know which.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from terrazzo.config import config
from terrazzo.errors import InputError

Shape = Literal["linear", "1-sqrt"]


def mix(a: float, b: float, share: float) -> float:
    """From `a` at share 0 to `b` at share 1, both exactly."""
    return a * (1 - share) + b * share


def linear_decay(progress: float) -> float:
    """Height above the final value: 1 at progress 0, 0 at 1, in a straight line."""
    return 1 - progress


def cosine_decay(progress: float) -> float:
    """Height above the final value: 1 at progress 0, 0 at 1, along half a cosine.

    Reference: SGDR (arXiv 1608.03983), Eq. 5.
    """
    return (1 + math.cos(math.pi * progress)) / 2


def sqrt_decay(progress: float) -> float:
    """Height above the final value: 1 at progress 0, 0 at 1, as 1 - sqrt(progress): steep first, then slow.

    Reference: Haegele et al. (arXiv 2405.18392), section 3.
    """
    return 1 - math.sqrt(progress)


@config
class Schedule:
    """Warm up from `start` to `peak`, then go to `final`: a multiplier of the learning rate, or any value.

    The default is MosaicBERT's: 6 % warm-up, then linear to 2 %.

    Args:
        kind: "linear" and "cosine" decay from the end of the warm-up on, "wsd" (warm-up, stable, decay) stays at `peak`
            until the last `decay` share of the stage, "constant" never decays.
        warmup: share of the stage that the straight rise from `start` to `peak` takes.
        decay, shape: share and form of the decay of "wsd"; "1-sqrt" falls as 1 - sqrt of its own progress.

    Reference: MosaicBERT (arXiv 2312.17482); WSD: MiniCPM (arXiv 2404.06395), Eq. 1.
    """

    kind: Literal["linear", "cosine", "wsd", "constant"] = "linear"
    start: float = 0.0
    peak: float = 1.0
    warmup: float = 0.06
    final: float = 0.02
    decay: float = 0.2
    shape: Shape = "linear"

    def __post_init__(self) -> None:
        for name in ("warmup", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"schedule: {name} is a share of the stage, 0 to 1, got {getattr(self, name)}")
        if self.kind == "wsd" and self.warmup + self.decay > 1:
            raise InputError(f"schedule: warmup {self.warmup} and decay {self.decay} take more than the whole stage")

    def __call__(self, progress: float) -> float:
        """The value at `progress`, which is held to [0, 1]."""
        progress = min(max(progress, 0.0), 1.0)
        if progress < self.warmup:
            return mix(self.start, self.peak, progress / self.warmup)
        return mix(self.final, self.peak, self._height(progress))

    def _height(self, progress: float) -> float:
        if self.kind == "constant":
            return 1.0
        begin = 1 - self.decay if self.kind == "wsd" else self.warmup
        if progress < begin:
            return 1.0
        share = (progress - begin) / (1 - begin) if progress < 1 else 1.0
        if self.kind == "cosine":
            return cosine_decay(share)
        return sqrt_decay(share) if self.kind == "wsd" and self.shape == "1-sqrt" else linear_decay(share)


@config
class Ramp:
    """A straight line from `start` to `end` over the stage, e.g. of the mask rate: `Ramp(start=0.3, end=0.15)`."""

    start: float
    end: float
    kind: Literal["ramp"] = "ramp"

    def __call__(self, progress: float) -> float:
        """The value at `progress`, which is held to [0, 1]."""
        return mix(self.start, self.end, min(max(progress, 0.0), 1.0))


#: Any schedule, as a config field.
ScheduleConfig = Annotated[Schedule | Ramp, Field(discriminator="kind")]
