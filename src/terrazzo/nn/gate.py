"""Gated attention: each head's output times a number between 0 and 1 that its own slice of the layer's input decides.

Shapes: T packed tokens, D width, N heads, H head width, K inner width of a gate, I inputs, O outputs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from terrazzo.nn.activations import ACTIVATIONS
from terrazzo.nn.config import EncoderConfig, GateKind


class HeadwiseLinear(nn.Module):
    """A small linear layer of its own for each head: `(..., N, T, I)` to `(..., N, T, O)`."""

    def __init__(self, num_heads: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_heads, out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(num_heads * out_features))

    def forward(self, x_NTI: Tensor) -> Tensor:
        return x_NTI @ self.weight.transpose(1, 2) + self.bias.view(len(self.weight), 1, -1)


class AttentionGate(nn.Module):
    """`sigmoid(G_n(x_n))` times the output of head n, where x_n is the head's slice of the input of attention.

    "linear": G is one linear map; "mlp": two with a ReLU between, a quarter of the head wide. A head that was cut away
    takes its gate along; the others keep their slices. A scaled gate is divided by `gate_init` and begins at exactly
    that with weights of zero, so that at first it changes nothing beyond rounding.

    Reference: Quantizable Transformers (arXiv 2306.12929), section 4.2.
    """

    def __init__(self, config: EncoderConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.head_width = config.layer_heads(layer), config.head_width
        inner = config.gate_width
        self.hidden = HeadwiseLinear(len(self.heads), self.head_width, inner) if inner else None
        self.out = HeadwiseLinear(len(self.heads), inner or self.head_width, 1)
        self.scale = 1 / config.gate_init if config.gate_scaled else 1.0

    @torch.no_grad()
    def reset(self, config: EncoderConfig) -> None:
        """Draw the weights from N(0, init_std), zero the last ones of scaled gates; open by `gate_init`."""
        for part in self.children():
            assert isinstance(part, HeadwiseLinear)
            nn.init.zeros_(part.bias)
            if part is self.out and config.gate_scaled:
                nn.init.zeros_(part.weight)
            else:
                nn.init.normal_(part.weight, std=config.init_std)
        nn.init.constant_(self.out.bias, math.log(config.gate_init / (1 - config.gate_init)))

    def gates(self, x_TD: Tensor) -> Tensor:
        """The factor of every token and head, `(..., T, N)`, of inputs `(..., T, D)`."""
        width = self.head_width
        x_NTH = torch.stack([x_TD[..., head * width : (head + 1) * width] for head in self.heads], dim=-3)
        inner = x_NTH if self.hidden is None else ACTIVATIONS["relu"](self.hidden(x_NTH))
        return self.out(inner)[..., 0].transpose(-1, -2).sigmoid() * self.scale

    def forward(self, x_TD: Tensor, mixed_TD: Tensor) -> Tensor:
        """The heads' outputs `(..., T, N * H)`, each times its gate."""
        heads_TNH = mixed_TD.unflatten(-1, (len(self.heads), self.head_width))
        return (heads_TNH * self.gates(x_TD)[..., None]).flatten(-2)


def add_gates(
    state: Mapping[str, Tensor], config: EncoderConfig, kind: GateKind = "linear", init: float = 0.5
) -> tuple[dict[str, Tensor], EncoderConfig]:
    """The state and config of a trained model with gates that change nothing at first, to be trained on.

    As a stage's `transform` it is called `terrazzo.nn.gate:add_gates`.

    Raises:
        InputError: `init` is not between 0 and 1.
    """
    gated, grown = config.replace(attention_gate=kind, gate_init=init, gate_scaled=True), dict(state)
    for name, weight in state.items():
        found = re.fullmatch(r"(.*blocks\.(\d+)\.attention)\.out\.weight", name)
        if found is not None:
            gate = AttentionGate(gated, int(found[2])).to(weight)
            gate.reset(gated)
            grown |= {f"{found[1]}.gate.{part}": values for part, values in gate.state_dict().items()}
    return grown, gated
