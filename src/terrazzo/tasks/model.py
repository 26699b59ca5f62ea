"""An encoder with the head of a task, and the folder that holds both.

Shapes: T packed tokens, B documents, M selected tokens, C outputs of the head.
"""

from __future__ import annotations

from torch import Tensor, nn

from terrazzo.nn import Encoder, EncoderConfig
from terrazzo.objectives import Loss, SupervisedConfig
from terrazzo.packed import Packed
from terrazzo.tasks.task import Task


class TaskModel(nn.Module):
    """An encoder with the head of one task."""

    def __init__(self, encoder: Encoder, task: Task) -> None:
        super().__init__()
        self.encoder, self.task = encoder, task
        self.head = task.build_head(encoder.config)

    @property
    def config(self) -> EncoderConfig:
        return self.encoder.config

    def forward(self, batch: Packed) -> Tensor:
        """Outputs of the head: `(B, C)`, `(M, C)` or `(T, 2)`, whichever the task has."""
        outputs: Tensor = self.head(self.encoder, batch)
        return outputs

    def task_loss(self, batch: Packed, options: SupervisedConfig) -> Loss:
        """The task's loss on a batch with labels."""
        return self.task.loss(self(batch), batch, options)
