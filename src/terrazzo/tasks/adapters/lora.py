"""Low-rank adapters: train two thin matrices beside each frozen one, and fold them in when done.

Shapes: T packed tokens, K matrices of one fused layer, I inputs, O outputs of each, R rank.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terrazzo.config import config, nearest
from terrazzo.errors import InputError
from terrazzo.tasks.adapters.base import AdaptedLinear

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

    #: Whether the adapter changes with the progress of a training.
    paced: ClassVar[bool] = False
    #: The learning rate it wants, as a multiple of the whole encoder's.
    rate: ClassVar[float] = 10.0
    #: Forward passes that a training step costs.
    passes: ClassVar[int] = 2

    kind: Literal["lora"] = "lora"
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

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers of a block that are adapted."""
        return tuple(name for target in self.targets for name in _LAYERS[target])

    def build(self, name: str, plain: nn.Linear) -> LowRankLinear:
        """The adapted layer in the place of a plain one."""
        return LowRankLinear(plain, self)


def low_rank(x_TI: Tensor, down_KRI: Tensor, up_KOR: Tensor) -> Tensor:
    """`(T, K * O)`: each of K updates `up @ down` applied to x, through their rank.

    Reference: LoRA (arXiv 2106.09685), Eq. 3, without W0.
    """
    narrow_TKR = F.linear(x_TI, down_KRI.flatten(0, 1)).unflatten(-1, down_KRI.shape[:2])
    return torch.einsum("tkr,kor->tko", narrow_TKR, up_KOR).flatten(1)


class LowRankLinear(AdaptedLinear):
    """A frozen layer and a trained low-rank update of each of its matrices, zero at first."""

    trained = ("lora_down", "lora_up")

    def __init__(self, plain: nn.Linear, options: LoraConfig) -> None:
        super().__init__(plain)
        each = plain.out_features // self.stacked
        self.lora_down = nn.Parameter(plain.weight.new_empty(self.stacked, options.rank, plain.in_features))
        self.lora_up = nn.Parameter(plain.weight.new_zeros(self.stacked, each, options.rank))
        nn.init.normal_(self.lora_down, std=plain.in_features**-0.5)
        self.scale, self.dropout = options.alpha / options.rank, options.dropout

    def forward(self, x_TI: Tensor) -> Tensor:
        update = low_rank(F.dropout(x_TI, self.dropout, self.training), self.lora_down, self.lora_up)
        return F.linear(x_TI, self.weight, self.bias) + self.scale * update

    def effective(self) -> Tensor:
        """The frozen weights plus the scaled updates."""
        return self.weight + self.scale * (self.lora_up @ self.lora_down).flatten(0, 1)
