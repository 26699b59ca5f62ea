"""Gradients of a model's loss, one example after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from terrazzo.compression.masks import single_matrices
from terrazzo.errors import InputError
from terrazzo.nn import Encoder
from terrazzo.objectives import Loss, Supervised, SupervisedConfig
from terrazzo.packed import Packed
from terrazzo.tasks.batches import collate
from terrazzo.tasks.labelled import LabelledRows
from terrazzo.tasks.model import TaskModel


class GradientStream(Protocol):
    """Gradients of a loss at the present weights, one example after the other, as often as it is asked."""

    def __len__(self) -> int:
        """How many examples there are."""
        ...

    def __call__(self, names: Sequence[str]) -> Iterator[Mapping[str, Tensor]]:
        """For every example the gradient of each named matrix."""
        ...


class LossGradients:
    """Per-example gradients of a loss with dropout off, by the names of `single_matrices` of the model's encoder.

    One backward pass an example: gradients of batches would make the Fisher matrix depend on the size of a batch.

    Args:
        model: has an `encoder`.
        examples: one batch for each example.
        loss: of the model on a batch, as an objective gives it; what counts is its mean over predictions.
    """

    def __init__(self, model: nn.Module, examples: Sequence[Packed], loss: Callable[[Any, Packed], Loss]) -> None:
        if not examples:
            raise InputError("gradients: there are no examples with an answer; give labelled rows")
        encoder = model.get_submodule("encoder")
        assert isinstance(encoder, Encoder)
        self.model, self.encoder, self.examples, self.loss = model, encoder, examples, loss

    def __len__(self) -> int:
        return len(self.examples)

    def __call__(self, names: Sequence[str]) -> Iterator[Mapping[str, Tensor]]:
        wanted = dict.fromkeys(name.partition(":")[0] for name in names)
        weights = [self.encoder.get_parameter(name) for name in wanted]
        counts = {name: len(single_matrices(self.encoder, [name])) for name in wanted}
        with _differentiable(self.model, weights):
            for example in self.examples:
                loss = self.loss(self.model, example)
                found = dict(zip(wanted, torch.autograd.grad(loss.sum / loss.weight, weights), strict=True))
                yield {name: _part(found, counts, name) for name in names}


class TaskGradients(LossGradients):
    """Per-example gradients of a task's loss; `examples` as `examples_of` gives them."""

    def __init__(self, model: TaskModel, examples: Sequence[Packed], options: SupervisedConfig | None = None) -> None:
        super().__init__(model, examples, Supervised(options or SupervisedConfig()).loss)


def _part(whole: Mapping[str, Tensor], counts: Mapping[str, int], name: str) -> Tensor:
    base, _, part = name.partition(":")
    return whole[base].chunk(counts[base])[int(part)] if part else whole[base]


def examples_of(rows: LabelledRows, most: int | None = None) -> list[Packed]:
    """One batch for each of the first `most` rows that have an answer, with all documents that the row became."""
    answered = [list(documents) for documents in rows.documents if documents and documents[0].label is not None]
    return [collate(documents) for documents in answered[:most]]


@contextmanager
def _differentiable(model: nn.Module, weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Dropout off and gradients on for these weights; afterwards all as it was."""
    training = [module for module in model.modules() if module.training]
    frozen = [weight for weight in weights if not weight.requires_grad]
    model.eval()
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
        for module in training:
            module.training = True
