"""Self-attention over packed documents.

Shapes: T packed tokens, D width, N heads, H head width, M selected tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from terrazzo.errors import InputError
from terrazzo.nn.backends import BACKENDS, ExplicitBackend, default_backend
from terrazzo.nn.binary import binary_activation, linear_classes
from terrazzo.nn.config import EncoderConfig
from terrazzo.nn.gate import AttentionGate
from terrazzo.nn.positions import alibi_slopes, rotate, rotations
from terrazzo.nn.softmax import Weigh, weighing
from terrazzo.packed import Packed


@dataclass
class AttentionContext:
    """What layers share about one batch: plans by window and heads, rotations by base, made on first use."""

    batch: Packed
    slopes_N: Tensor | None
    backend: str
    causal: bool = False
    _plans: dict[tuple[int | None, tuple[int, ...] | None], Any] = field(default_factory=dict)
    _rotations: dict[float, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: Packed, config: EncoderConfig, backend: str | None) -> AttentionContext:
        """The context of a batch for an encoder of this config; `backend` None takes the device's default."""
        slopes_N = alibi_slopes(config.num_heads) if config.positions == "alibi" else None
        explicit = weighing(config) is not None
        return cls(batch, slopes_N, backend or default_backend(batch.device, explicit), config.causal)

    def plan(self, window: int | None, heads: tuple[int, ...]) -> Any:
        """The backend's plan for layers of this window; where heads differ by their slopes, of these heads."""
        key = (window, None if self.slopes_N is None else heads)
        if key not in self._plans:
            slopes = None if self.slopes_N is None else self.slopes_N[list(heads)]
            self._plans[key] = BACKENDS[self.backend].plan(self.batch, slopes, window, self.causal)
        return self._plans[key]

    def rotation(self, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
        """Cosines and sines of every token's position."""
        if theta not in self._rotations:
            self._rotations[theta] = rotations(self.batch.positions_T, head_width, theta)
        return self._rotations[theta]

    def attend(
        self,
        qkv_T3NH: Tensor,
        window: int | None,
        heads: tuple[int, ...],
        dropout: float,
        weigh: Weigh | None = None,
    ) -> Tensor:
        """Attention output `(T, N * H)` of a layer with these N heads; `weigh` None is the plain softmax."""
        backend, plan = BACKENDS[self.backend], self.plan(window, heads)
        if weigh is None:
            return backend.attend(qkv_T3NH, plan, dropout)
        if not isinstance(backend, ExplicitBackend):
            raise InputError(
                f"backend {self.backend!r} fuses the softmax, and this model has another one or none "
                "(softmax_gamma, softmax_zeta, binary): leave the backend out, or take 'reference'"
            )
        return backend.attend_explicitly(qkv_T3NH, plan, dropout, weigh)


class Attention(nn.Module):
    """Multi-head self-attention with a fused QKV product; `heads` are the layer's, by their number in a full one."""

    def __init__(self, config: EncoderConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.head_width = config.layer_heads(layer), config.head_width
        inner = self.num_heads * self.head_width
        linear, stacked = linear_classes(config)
        self.qkv = stacked(config.width, inner, 3, bias=config.attention_bias)
        self.gate = None if config.attention_gate is None else AttentionGate(config, layer)
        self.out = linear(inner, config.width, bias=config.attention_bias)
        self.window = config.layer_window(layer)
        self.theta = _layer_theta(config, layer)
        self.dropout, self.weigh, self.binary = config.attention_dropout, weighing(config), config.binary

    @property
    def num_heads(self) -> int:
        """Heads that this layer has."""
        return len(self.heads)

    def forward(self, x_TD: Tensor, context: AttentionContext, select_M: Tensor | None = None) -> Tensor:
        """Attend; with `select_M` the output projection runs on those tokens alone, `(M, D)`."""
        if not self.heads:
            return self.out(x_TD.new_empty(len(x_TD if select_M is None else select_M), 0))
        qkv_T3NH = self.qkv(x_TD).view(-1, 3, self.num_heads, self.head_width)
        if self.theta is not None:
            cos_TH, sin_TH = context.rotation(self.head_width, self.theta)
            turned = rotate(qkv_T3NH[:, :2], cos_TH, sin_TH)
            qkv_T3NH = torch.cat((turned, qkv_T3NH[:, 2:]), dim=1)
        if self.binary:
            qkv_T3NH = binary_activation(qkv_T3NH)
        dropout = self.dropout if self.training else 0.0
        mixed_TD = context.attend(qkv_T3NH, self.window, self.heads, dropout, self.weigh)
        if select_M is not None:
            mixed_TD = mixed_TD.index_select(0, select_M)
        if self.gate is not None:
            mixed_TD = self.gate(x_TD if select_M is None else x_TD.index_select(0, select_M), mixed_TD)
        return self.out(mixed_TD)


def _layer_theta(config: EncoderConfig, layer: int) -> float | None:
    if config.positions != "rope":
        return None
    if config.layer_window(layer) is not None and config.local_rope_theta is not None:
        return config.local_rope_theta
    return config.rope_theta
