"""Low-rank adapters: train two thin matrices beside each frozen one, and fold them in when done.

Shapes: T packed tokens, K matrices of one fused layer, I inputs, O outputs of each, R rank.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terrazzo.config import config, nearest
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, EncoderConfig, StackedLinear

Target = Literal["qkv", "out", "mlp"]

#: The layers of a block that each target means.
_LAYERS: dict[str, tuple[str, ...]] = {
    "qkv": ("attention.qkv",),
    "out": ("attention.out",),
    "mlp": ("mlp.up", "mlp.down"),
}


@config
class LoraConfig:
    """Which layers get adapters, and how large.

    Args:
        rank: of each matrix's update; a fused layer has one update for each of its matrices (Q, K, V; gate, value).
        alpha: the update is scaled by alpha / rank.
        targets: "qkv" and "out" of attention, both matrices of "mlp".
        dropout: of the adapters' input, in training.

    Reference: LoRA (arXiv 2106.09685), section 4.1; adapting attention alone: section 4.2.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[Target, ...] = ("qkv", "out")
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"lora.rank must be at least 1, got {self.rank}")
        if not self.alpha > 0:
            raise InputError(f"lora.alpha must be positive, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"lora.dropout must be in [0, 1), got {self.dropout}")
        if not self.targets:
            raise InputError(f"lora.targets: name at least one of {', '.join(_LAYERS)}")
        for target in self.targets:
            if target not in _LAYERS:
                raise InputError(f"lora.targets: {target!r}: {nearest(target, _LAYERS)}")


def low_rank(x_TI: Tensor, down_KRI: Tensor, up_KOR: Tensor) -> Tensor:
    """`(T, K * O)`: each of K updates `up @ down` applied to x, through their rank.

    Reference: LoRA (arXiv 2106.09685), Eq. 3, without W0.
    """
    narrow_TKR = F.linear(x_TI, down_KRI.flatten(0, 1)).unflatten(-1, down_KRI.shape[:2])
    return torch.einsum("tkr,kor->tko", narrow_TKR, up_KOR).flatten(1)


class LowRankLinear(nn.Linear):
    """A linear layer with frozen weights, under the names they had, and a trained low-rank update of each matrix.

    The update is zero at first, so that the layer begins as the one it replaces.
    """

    def __init__(self, plain: nn.Linear, options: LoraConfig) -> None:
        nn.Module.__init__(self)  # the weights are there already
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.weight, self.bias = plain.weight, plain.bias
        self.stacked = plain.stacked if isinstance(plain, StackedLinear) else 1
        each = plain.out_features // self.stacked
        self.lora_down = nn.Parameter(plain.weight.new_empty(self.stacked, options.rank, plain.in_features))
        self.lora_up = nn.Parameter(plain.weight.new_zeros(self.stacked, each, options.rank))
        nn.init.normal_(self.lora_down, std=plain.in_features**-0.5)
        self.scale, self.dropout = options.alpha / options.rank, options.dropout
        self._plain = (plain,)  # in a tuple it is no submodule, and adds no names

    def forward(self, x_TI: Tensor) -> Tensor:
        update = low_rank(F.dropout(x_TI, self.dropout, self.training), self.lora_down, self.lora_up)
        return F.linear(x_TI, self.weight, self.bias) + self.scale * update

    def merged(self) -> nn.Linear:
        """The layer that was replaced, with the update in its weights."""
        (plain,) = self._plain
        update_KOI = self.lora_up.detach() @ self.lora_down.detach()
        plain.weight = nn.Parameter(self.weight.detach() + self.scale * update_KOI.flatten(0, 1))
        plain.bias = self.bias
        return plain


def add_lora(encoder: Encoder, options: LoraConfig) -> None:
    """Freeze an encoder and put adapters into it; what it computes stays the same.

    Raises:
        InputError: a rank that is no smaller than the matrices are.
        ValueError: the encoder has adapters already.
    """
    if lora_parameters(encoder):
        raise ValueError("the encoder has adapters already: merge_lora first")
    least = _least_width(encoder.config)
    if options.rank >= least:
        raise InputError(f"lora.rank {options.rank}: the model's matrices have rank {least}; take a smaller one")
    encoder.requires_grad_(False)
    for block in encoder.blocks:
        for target in options.targets:
            for name in _LAYERS[target]:
                plain = block.get_submodule(name)
                assert isinstance(plain, nn.Linear)
                if not plain.weight.numel():
                    continue
                block.set_submodule(name, LowRankLinear(plain, options))


def _least_width(config: EncoderConfig) -> int:
    """Of the model and of the inside of its layers, those that hold nothing aside."""
    layers = range(config.depth)
    heads = (len(config.layer_heads(layer)) * config.head_width for layer in layers)
    return min(filter(None, (config.width, *heads, *map(config.layer_mlp_width, layers))))


def merge_lora(encoder: Encoder) -> None:
    """Fold all adapters into the weights they adapt and take them out; every parameter is trainable again."""
    for name, module in list(encoder.named_modules()):
        if isinstance(module, LowRankLinear):
            encoder.set_submodule(name, module.merged())
    encoder.requires_grad_(True)


def lora_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapters' parameters by name; none where there are no adapters."""
    return {
        f"{name}.{local}".removeprefix("."): parameter
        for name, module in model.named_modules()
        if isinstance(module, LowRankLinear)
        for local, parameter in (("lora_down", module.lora_down), ("lora_up", module.lora_up))
    }
