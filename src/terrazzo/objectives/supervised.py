"""Learning from labelled rows: what a fine-tuning stage minimises; the task itself says how its outputs are judged."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np

from terrazzo.config import config
from terrazzo.data.corpus import SpecialTokens
from terrazzo.errors import InputError
from terrazzo.objectives.objective import Loss
from terrazzo.packed import Packed


@config
class SupervisedConfig:
    """How the loss of a labelled task is shaped.

    Args:
        class_weights: "balanced" weighs every class by the inverse of its share, so that all count alike; or a weight
            for each class by name, 1 for those left out; None weighs rows alike.
        focal_gamma: power of (1 - p) that lets rows already answered count less; 0 is cross-entropy
            (arXiv 1708.02002, Equation 4).
        label_smoothing: share of the target spread over all classes.
        problem_loss: for models of several problems: "own" normalises over the classes of the row's problem alone,
            "all" over the classes of all problems (arXiv 2111.03963).
    """

    kind: Literal["supervised"] = "supervised"
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    focal_gamma: float = 0.0
    label_smoothing: float = 0.0
    problem_loss: Literal["own", "all"] = "own"

    def __post_init__(self) -> None:
        if self.focal_gamma < 0:
            raise InputError(f"focal_gamma must not be negative, got {self.focal_gamma}")
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")

    def build(self, special: SpecialTokens, vocab_size: int, word_starts: np.ndarray | None = None) -> Supervised:
        """The objective; the tokenizer's facts do not matter to it."""
        return Supervised(self)


class SupervisedModel(Protocol):
    """What the objective needs of a model."""

    def task_loss(self, batch: Packed, options: SupervisedConfig) -> Loss:
        """The task's loss on a batch with labels."""
        ...


class Supervised:
    """The loss that a model's task defines; `corrupt` leaves a batch as it is."""

    def __init__(self, config: SupervisedConfig) -> None:
        self.config = config

    def corrupt(self, batch: Packed, seed: int, *, evaluation: bool = False) -> Packed:
        """The batch itself: its labels came with it."""
        return batch

    def loss(self, model: SupervisedModel | Any, batch: Packed) -> Loss:
        """The loss of `model`'s task on a batch with labels."""
        return model.task_loss(batch, self.config)
