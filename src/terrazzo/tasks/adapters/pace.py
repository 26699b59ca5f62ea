"""How adapters that prune on the way learn how far a training is: an objective whose progress is a scheduled value."""

from __future__ import annotations

from terrazzo.nn import Encoder
from terrazzo.objectives import Supervised, SupervisedConfig
from terrazzo.tasks.adapters.base import adapted_layers

#: The schedule by which the loop tells the progress of a stage, from 0 to 1: every adapter with `paced` needs it.
PACE_NAME = "objective.progress"


class PacedSupervised(Supervised):
    """The loss of a task; the loop sets `progress` once a step, before it, which advances the encoder's adapters."""

    def __init__(self, config: SupervisedConfig, encoder: Encoder) -> None:
        super().__init__(config)
        self.layers = list(adapted_layers(encoder).values())
        self._progress = 0.0

    @property
    def progress(self) -> float:
        """The share of the stage that is done after the step."""
        return self._progress

    @progress.setter
    def progress(self, value: float) -> None:
        self._progress = value
        for layer in self.layers:
            layer.advance(value)

    @property
    def settled(self) -> bool:
        """Whether every layer is as sparse as it is to become."""
        return all(layer.settled for layer in self.layers)
