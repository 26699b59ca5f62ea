"""The encoder: embeddings and blocks over a packed batch.

Shapes: T packed tokens, D width, M selected tokens.
"""

from __future__ import annotations

from torch import Tensor, nn

from terrazzo.nn.attention import AttentionContext
from terrazzo.nn.block import Block
from terrazzo.nn.config import EncoderConfig
from terrazzo.nn.embeddings import Embeddings
from terrazzo.nn.initialise import initialise
from terrazzo.nn.norms import build_norm
from terrazzo.packed import Packed


class Encoder(nn.Module):
    """A transformer encoder; bidirectional, unless its config says causal.

    Args:
        config: the architecture.
        backend: attention backend by name ("reference", "grouped", "flex"); None takes the device's default.
    """

    def __init__(self, config: EncoderConfig, backend: str | None = None) -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        self.embeddings = Embeddings(config)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.final_norm = build_norm(config) if config.final_norm else nn.Identity()
        initialise(self, config)

    def forward(self, batch: Packed, select_M: Tensor | None = None) -> Tensor:
        """Hidden states `(T, D)`, or `(M, D)` of the tokens at `select_M`.

        With a selection the last block computes its projections and MLP for those tokens alone; the values are the
        same.
        """
        context = AttentionContext.of(batch, self.config, self.backend)
        x_TD = self.embeddings(batch)
        *body, last = self.blocks
        for block in body:
            x_TD = block(x_TD, context)
        return self.final_norm(last(x_TD, context, select_M))

    def compile_blocks(self) -> None:
        """Compile what surrounds attention with torch.compile, for any number of tokens; attention stays as it is."""
        for module in self.blocks:
            assert isinstance(module, Block)
            module.mlp.compile(dynamic=True)
            module.mlp_norm.compile(dynamic=True)
            module.attention_norm.compile(dynamic=True)
