"""The channel mixer: a plain or a gated MLP.

Shapes: T packed tokens, D width, F inner width.
"""

from __future__ import annotations

from torch import Tensor, nn

from terrazzo.nn.activations import ACTIVATIONS
from terrazzo.nn.binary import linear_classes
from terrazzo.nn.config import EncoderConfig


class MLP(nn.Module):
    """`down(act(up(x)))`, or gated `down(act(gate(x)) * value(x))` with gate and value in one product.

    Reference: GLU variants (arXiv 2002.05202), Eq. 6 (GEGLU) and Eq. 7 (SwiGLU).
    """

    def __init__(self, config: EncoderConfig, layer: int) -> None:
        super().__init__()
        stacked, inner = 2 if config.gated else 1, config.layer_mlp_width(layer)
        linear, several = linear_classes(config)
        self.up = several(config.width, inner, stacked, bias=config.mlp_in_bias)
        self.down = linear(inner, config.width, bias=config.mlp_out_bias)
        self.activation = ACTIVATIONS[config.activation]
        self.gated = config.gated

    def forward(self, x_TD: Tensor) -> Tensor:
        inner = self.up(x_TD)
        if not self.gated:
            return self.down(self.activation(inner))
        gate_TF, value_TF = inner.chunk(2, dim=-1)
        return self.down(self.activation(gate_TF) * value_TF)
