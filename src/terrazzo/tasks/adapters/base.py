"""A linear layer with frozen weights and something trained beside them: what all adapters share.

Shapes: T packed tokens, K matrices of one fused layer, I inputs, O outputs of each.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terrazzo.nn import Encoder, StackedLinear


class AdaptedLinear(nn.Linear):
    """A linear layer with frozen weights, under the names they had, and an adapter's parameters beside them.

    A subclass names its parameters in `trained` and writes `effective`; it begins as the layer it replaces.
    """

    trained: tuple[str, ...] = ()

    def __init__(self, plain: nn.Linear) -> None:
        nn.Module.__init__(self)  # the weights are there already
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.weight, self.bias = plain.weight, plain.bias
        self.stacked = plain.stacked if isinstance(plain, StackedLinear) else 1
        self._plain = (plain,)  # in a tuple it is no submodule, and adds no names

    @property
    def weight_KOI(self) -> Tensor:
        """The frozen weights, matrix by matrix."""
        return self.weight.unflatten(0, (self.stacked, -1))

    @property
    def settled(self) -> bool:
        """Whether the layer is as sparse as it is to become, so that an evaluation of it counts."""
        return True

    def begin(self) -> None:
        """Read what the adapter takes from the frozen weights; not called where its values are loaded."""

    def advance(self, progress: float) -> None:
        """Hear, before every step, which share of a training is done after it."""

    @abstractmethod
    def effective(self) -> Tensor:
        """The weights that the layer works with, `(K * O, I)`."""

    def forward(self, x_TI: Tensor) -> Tensor:
        return F.linear(x_TI, self.effective(), self.bias)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The layer that was replaced, with what was learned in its weights."""
        (plain,) = self._plain
        self.eval()  # in training, asking for the weights may choose anew which of them stay
        plain.weight = nn.Parameter(self.effective().detach().clone())
        plain.bias = self.bias
        return plain


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLinear]:
    """The layers with adapters by name; none where there are no adapters."""
    return {name: module for name, module in model.named_modules() if isinstance(module, AdaptedLinear)}


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapters' parameters by name; none where there are no adapters."""
    return {
        f"{name}.{local}".removeprefix("."): layer.get_parameter(local)
        for name, layer in adapted_layers(model).items()
        for local in layer.trained
    }


def merge_adapters(encoder: Encoder) -> None:
    """Fold all adapters into the weights they adapt and take them out; every parameter is trainable again."""
    for name, layer in adapted_layers(encoder).items():
        encoder.set_submodule(name, layer.merged())
    encoder.requires_grad_(True)


def zero_shares(encoder: Encoder) -> dict[str, float]:
    """The share of zeros in each layer of the blocks, by the name of its weights."""
    return {
        f"blocks.{name}.weight": float((module.weight == 0).float().mean())
        for name, module in encoder.blocks.named_modules()
        if isinstance(module, nn.Linear) and module.weight.numel()
    }


@torch.no_grad()
def largest(scores: Tensor, pruned: int) -> Tensor:
    """bool, the shape of `scores`: all but the `pruned` smallest, exactly; of equal scores the first are kept.

    Raises:
        ValueError: more to prune than there are.
    """
    flat = scores.flatten()
    if not 0 <= pruned <= flat.numel():
        raise ValueError(f"{pruned} of {flat.numel()} entries cannot be pruned")
    if not pruned:
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = flat.kthvalue(pruned).values
    kept = flat > threshold
    missing = flat.numel() - pruned - int(kept.sum())
    kept[(flat == threshold).nonzero()[:missing, 0]] = True
    return kept.view_as(scores)
