"""An encoder as a graph for other runtimes: its weights in a form that tracers and exporters take.

Everything but attention runs on the real tokens alone; attention runs padded, each head's queries, keys and values
gathered into place by indices that come with the batch. So one graph serves every batch size and length, and padding
costs little. Widths come from the weights, because layers of one encoder may differ after pruning.

Shapes: T packed tokens, B documents, S longest document, D width, N heads, H head width, M selected tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terrazzo.errors import InputError
from terrazzo.nn import Encoder, EncoderConfig
from terrazzo.nn.attention import Attention
from terrazzo.nn.block import Block
from terrazzo.nn.linear import Linear
from terrazzo.nn.mlp import MLP
from terrazzo.nn.norms import RMSNorm
from terrazzo.nn.positions import alibi_slopes, rotations
from terrazzo.nn.softmax import Weigh
from terrazzo.packed import Packed

#: Added to the scores of what a token does not see: its weight is exactly 0, and no row of padding becomes NaN.
UNSEEN = -1e30


def attention_bias(lengths_B: Tensor, size: int, slopes_N: Tensor | None, window: int | None, causal: bool) -> Tensor:
    """What is added to attention scores: padding, distance penalties, window; broadcasts to `(B, N, S, S)`, fp32."""
    positions_S = torch.arange(size, device=lengths_B.device)
    seen = (positions_S < lengths_B[:, None])[:, None, None, :]
    offset_SS = positions_S[:, None] - positions_S[None]
    if window is not None:
        seen = seen & (offset_SS.abs() <= window // 2)
    if causal:
        seen = seen & (offset_SS >= 0)
    near = torch.zeros((), device=lengths_B.device)
    if slopes_N is not None:
        near = -slopes_N[:, None, None] * offset_SS.abs()
    return torch.where(seen, near, torch.full_like(near, UNSEEN))


def graph_inputs(batch: Packed, config: EncoderConfig, select_M: Tensor | None = None) -> dict[str, np.ndarray]:
    """A batch as exported graphs take it, all int64.

    Returns:
        "ids" `(T,)`; "lengths" `(B,)`; "tokens" `(B, S)`, the token that fills each place of the padded batch, behind
        a document's end its first; "places" `(T,)`, the place of each token in the flattened padded batch; "select"
        `(M,)`, the tokens whose states are wanted; "types" `(T,)` where the config has any; "positions" `(T,)` where
        they are learned.

    Raises:
        InputError: a document longer than a learned position table.
    """
    refuse_too_long(batch, config)
    lengths_B, ids = np.asarray(batch.lengths, dtype=np.int64), batch.tokens_T.cpu().numpy()
    starts_B = np.cumsum(lengths_B) - lengths_B
    positions_S = np.arange(batch.max_len)
    real_BS = positions_S < lengths_B[:, None]
    inputs = {
        "ids": ids,
        "lengths": lengths_B,
        "tokens": starts_B[:, None] + np.where(real_BS, positions_S, 0),
        "places": np.flatnonzero(real_BS),
        "select": np.arange(batch.num_tokens) if select_M is None else select_M.cpu().numpy().astype(np.int64),
    }
    if config.token_types > 1:
        inputs["types"] = np.zeros_like(ids) if batch.token_types_T is None else batch.token_types_T.cpu().numpy()
    if config.positions == "learned":
        inputs["positions"] = batch.positions_T.cpu().numpy()
    return inputs


def rounded(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same batch with T, S and M rounded up, so that few shapes occur where each one costs time and memory.

    Tokens that are added belong to no document, and what is added to the selection stands behind it.
    """
    documents, longest = inputs["tokens"].shape
    size = round_up(longest)
    first = np.broadcast_to(inputs["tokens"][:, :1], (documents, size - longest))
    grown = {name: _grown(values) for name, values in inputs.items() if name not in ("lengths", "tokens")}
    document_T, position_T = np.divmod(inputs["places"], longest)
    places = _grown(document_T * size + position_T)
    return inputs | grown | {"places": places, "tokens": np.concatenate([inputs["tokens"], first], axis=1)}


def round_up(number: int) -> int:
    """The next multiple of 16, or of a sixteenth of the greatest power of two within: at most 15 or 6.3 % more."""
    step = max(16, 1 << max(number.bit_length() - 5, 0))
    return -(-number // step) * step


def _grown(values_T: np.ndarray) -> np.ndarray:
    grown_T = np.zeros(round_up(len(values_T)), dtype=values_T.dtype)
    grown_T[: len(values_T)] = values_T
    return grown_T


def example_inputs(config: EncoderConfig) -> dict[str, Tensor]:
    """Inputs of a small batch for tracers, by the names that every exported graph keeps."""
    batch = Packed.from_sequences([[1, 2, 3], [1, 2]])
    return {name: torch.from_numpy(values) for name, values in graph_inputs(batch, config).items()}


def refuse_too_long(batch: Packed, config: EncoderConfig) -> None:
    """Raise InputError for a document longer than a learned position table."""
    if config.positions == "learned" and batch.max_len > config.max_len:
        raise InputError(
            f"a document has {batch.max_len} tokens, the model has {config.max_len} learned positions: "
            "truncate or split it, or use a model with ALiBi or rotary positions"
        )


class Layout(ABC):
    """Where tokens stand, and what all layers share about a batch: one bias a window and one rotation a base."""

    def __init__(self, config: EncoderConfig, lengths_B: Tensor, size: int) -> None:
        self.config, self.lengths_B, self.size = config, lengths_B, size
        self._biases: dict[tuple[int | None, tuple[int, ...] | None], Tensor] = {}
        self._rotations: dict[tuple[float, int], tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def spread(self, x: Tensor) -> Tensor:
        """Values of tokens as `(B, S, D)`."""

    @abstractmethod
    def join(self, x_BSD: Tensor, select_M: Tensor | None) -> Tensor:
        """What `spread` made, as it was; or `(M, D)`, the selected."""

    @abstractmethod
    def chosen(self, x: Tensor, select_M: Tensor) -> Tensor:
        """The selected values of tokens, `(M, D)`."""

    def bias(self, window: int | None, heads: tuple[int, ...]) -> Tensor:
        """What layers of this window, with these heads, add to their scores."""
        alibi = self.config.positions == "alibi"
        key = (window, heads if alibi else None)
        if key not in self._biases:
            slopes_N = alibi_slopes(self.config.num_heads)[list(heads)].to(self.lengths_B.device) if alibi else None
            self._biases[key] = attention_bias(self.lengths_B, self.size, slopes_N, window, self.config.causal)
        return self._biases[key]

    def rotation(self, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
        """Cosines and sines of every position, each `(S, H)`."""
        key = (theta, head_width)
        if key not in self._rotations:
            positions_S = torch.arange(self.size, device=self.lengths_B.device)
            self._rotations[key] = rotations(positions_S, head_width, theta)
        return self._rotations[key]


class PackedLayout(Layout):
    """Tokens end to end, `(1, T, D)`; see `graph_inputs` for the indices.

    The leading 1 is for OpenVINO, which takes the second dimension for channels: with two dimensions it would fold
    scales a channel into the rounding before a product, which then runs ten times slower, apart from its neighbours.
    """

    def __init__(self, config: EncoderConfig, lengths_B: Tensor, tokens_BS: Tensor, places_T: Tensor) -> None:
        super().__init__(config, lengths_B, tokens_BS.shape[1])
        self.tokens_BS, self.places_T = tokens_BS, places_T

    def spread(self, x: Tensor) -> Tensor:
        return F.embedding(self.tokens_BS, x.flatten(0, 1))

    def join(self, x_BSD: Tensor, select_M: Tensor | None) -> Tensor:
        places = self.places_T if select_M is None else self.places_T[select_M]
        return F.embedding(places, x_BSD.flatten(0, 1))[None]

    def chosen(self, x: Tensor, select_M: Tensor) -> Tensor:
        return F.embedding(select_M, x.flatten(0, 1))[None]


class TracedEncoder(nn.Module):
    """The same parameters as `encoder`, over tensors alone; dropout never runs here."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        if encoder.config.binary:
            raise InputError(
                "binary: graphs for other runtimes would compute a binary encoder in floats, and none has kernels of "
                "one bit: serve its folder as it is, on PyTorch, or export the model that it was made from"
            )
        self.config = encoder.config
        self.embeddings, self.blocks, self.final_norm = encoder.embeddings, encoder.blocks, encoder.final_norm
        self.projections = nn.ModuleList(map(_projections, encoder.blocks))

    def embed(self, ids: Tensor, types: Tensor | None, learned: Tensor | None) -> Tensor:
        """Embeddings of ids of any shape; `learned` are the rows of the position table that go with them."""
        parts = self.embeddings
        x, shared = parts.tokens(ids), learned
        if parts.token_types is not None and types is not None:
            x = x + parts.token_types(types)
        elif parts.token_types is not None:
            first_D = parts.token_types.weight[0]
            shared = first_D if shared is None else shared + first_D
        return _norm(parts.norm, x if shared is None else x + shared)

    def layers(self, x: Tensor, layout: Layout, select_M: Tensor | None) -> Tensor:
        """All blocks; with a selection, what follows the last attention runs on those tokens alone."""
        last = len(self.blocks) - 1
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            x = _block(block, self.projections[layer], x, layout, select_M if layer == last else None)
        return _norm(self.final_norm, x)


class GraphEncoder(TracedEncoder):
    """What both exports trace: hidden states `(M, D)` from the `graph_inputs` of a batch."""

    def forward(
        self,
        ids: Tensor,
        lengths: Tensor,
        tokens: Tensor,
        places: Tensor,
        select: Tensor,
        types: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of the selected tokens, `(M, D)`."""
        table = self.embeddings.positions
        learned = None if table is None or positions is None else table(positions[None] + self.config.position_offset)
        layout = PackedLayout(self.config, lengths, tokens, places)
        x_1TD = self.embed(ids[None], None if types is None else types[None], learned)
        return self.layers(x_1TD, layout, select).flatten(0, 1)


class _Projections(nn.Module):
    """Queries, keys and values by three products: taking the one of all three apart costs a graph a copy."""

    def __init__(self, stacked: nn.Linear) -> None:
        super().__init__()
        self.q, self.k, self.v = (_third(stacked, number) for number in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.q(x), self.k(x), self.v(x)


def _projections(block: nn.Module) -> _Projections:
    assert isinstance(block, Block)
    return _Projections(block.attention.qkv)


def _third(stacked: nn.Linear, number: int) -> nn.Linear:
    """A linear layer that shares a third of the rows of `stacked`."""
    weight = stacked.weight.detach().chunk(3)[number]
    third = Linear(weight.shape[1], weight.shape[0], bias=stacked.bias is not None, device="meta")
    third.weight = nn.Parameter(weight, requires_grad=False)
    if stacked.bias is not None:
        third.bias = nn.Parameter(stacked.bias.detach().chunk(3)[number], requires_grad=False)
    return third


def _block(block: Block, qkv: nn.Module, x: Tensor, layout: Layout, select_M: Tensor | None) -> Tensor:
    residual = x if select_M is None else layout.chosen(x, select_M)
    if block.pre_norm:
        x = residual + _attention(block.attention, qkv, _norm(block.attention_norm, x), layout, select_M)
        return x + _mlp(block.mlp, _norm(block.mlp_norm, x))
    x = _norm(block.attention_norm, residual + _attention(block.attention, qkv, x, layout, select_M))
    return _norm(block.mlp_norm, x + _mlp(block.mlp, x))


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    """The norm; RMSNorm from its parts, because exporters lack the operator."""
    if isinstance(norm, RMSNorm):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps) * norm.weight
    normed: Tensor = norm(x)
    return normed


def _mlp(mlp: MLP, x: Tensor) -> Tensor:
    mixed: Tensor = mlp(x) if mlp.down.in_features else _constant(mlp.down, x)
    return mixed


def _constant(linear: nn.Linear, x: Tensor) -> Tensor:
    """What a layer without inputs adds; graphs have no products with nothing."""
    return x.new_zeros(1) if linear.bias is None else linear.bias


def _attention(attention: Attention, qkv: nn.Module, x: Tensor, layout: Layout, select_M: Tensor | None) -> Tensor:
    if not attention.heads:
        return _constant(attention.out, x)
    q, k, v = (_heads(layout.spread(part), attention.num_heads) for part in qkv(x))
    if attention.theta is not None:
        cos_SH, sin_SH = layout.rotation(attention.head_width, attention.theta)
        q, k = _rotate(q, cos_SH, sin_SH), _rotate(k, cos_SH, sin_SH)
    bias = layout.bias(attention.window, attention.heads)
    mixed_BSD = _mixed(q, k, v, bias, attention.weigh).transpose(1, 2).flatten(2)
    mixed = layout.join(mixed_BSD, select_M)
    if attention.gate is not None:
        mixed = attention.gate(x if select_M is None else layout.chosen(x, select_M), mixed)
    out: Tensor = attention.out(mixed)
    return out


def _mixed(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, weigh: Weigh | None) -> Tensor:
    if weigh is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return weigh(q @ k.transpose(2, 3) * q.shape[-1] ** -0.5 + bias) @ v


def _heads(x_BSD: Tensor, num_heads: int) -> Tensor:
    documents, size, width = x_BSD.shape
    return x_BSD.view(documents, size, num_heads, width // num_heads).transpose(1, 2)


def _rotate(x_BNSH: Tensor, cos_SH: Tensor, sin_SH: Tensor) -> Tensor:
    first, second = x_BNSH.chunk(2, dim=-1)
    return x_BNSH * cos_SH + torch.cat((-second, first), dim=-1) * sin_SH
