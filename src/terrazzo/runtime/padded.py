"""An encoder over padded batches: the weights of `nn.Encoder`, in a form that tracers and exporters take.

Everything that depends on a batch follows from its padded shape and its lengths, so that one graph serves every batch
size and length. Widths come from the weights, because layers of one encoder may differ after pruning.

Shapes: B documents, S padded length, D width, N heads, H head width, M selected tokens.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terrazzo.errors import InputError
from terrazzo.nn import Encoder, EncoderConfig
from terrazzo.nn.attention import Attention
from terrazzo.nn.block import Block
from terrazzo.nn.norms import RMSNorm
from terrazzo.nn.positions import alibi_slopes, rotations
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


class PaddedEncoder(nn.Module):
    """The same parameters as `encoder`, over `(B, S)` ids whose real tokens stand on the left.

    Args:
        encoder: whose modules are shared, not copied; dropout never runs here.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.config = encoder.config
        self.embeddings, self.blocks, self.final_norm = encoder.embeddings, encoder.blocks, encoder.final_norm
        self.projections = nn.ModuleList(map(_projections, encoder.blocks))
        self.takes_token_types = self.config.token_types > 1

    def forward(self, ids: Tensor, lengths: Tensor, types: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """Hidden states `(B, S, D)`, or `(M, D)` of the places `rows` of the flattened `(B * S)` batch.

        What stands behind a document's end is undefined. With a selection the last block computes its projections and
        MLP for those tokens alone.

        Args:
            ids: int64 `(B, S)` token ids, padded with any id on the right.
            lengths: int64 `(B,)` tokens of each document.
            types: int64 `(B, S)` segment ids; None means all zero.
            rows: int64 `(M,)`.
        """
        batch = _Batch(self.config, lengths, ids.shape[1])
        x = self._embed(ids, types)
        last = len(self.blocks) - 1
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            x = _block(block, self.projections[layer], x, batch, rows if layer == last else None)
        return _norm(self.final_norm, x)

    def _embed(self, ids_BS: Tensor, types_BS: Tensor | None) -> Tensor:
        parts = self.embeddings
        x_BSD = parts.tokens(ids_BS)
        shared_SD: Tensor | None = None
        if parts.positions is not None:
            shared_SD = parts.positions.weight[parts.position_offset :][: ids_BS.shape[1]]
        if parts.token_types is not None:
            if self.takes_token_types and types_BS is not None:
                x_BSD = x_BSD + parts.token_types(types_BS)
            else:
                first_D = parts.token_types.weight[0]
                shared_SD = first_D if shared_SD is None else shared_SD + first_D
        return _norm(parts.norm, x_BSD if shared_SD is None else x_BSD + shared_SD)


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
    third = nn.Linear(weight.shape[1], weight.shape[0], bias=stacked.bias is not None, device="meta")
    third.weight = nn.Parameter(weight, requires_grad=False)
    if stacked.bias is not None:
        third.bias = nn.Parameter(stacked.bias.detach().chunk(3)[number], requires_grad=False)
    return third


class _Batch:
    """What all layers share about a batch: one bias a window and one rotation a base."""

    def __init__(self, config: EncoderConfig, lengths_B: Tensor, size: int) -> None:
        self.config, self.lengths_B, self.size = config, lengths_B, size
        self.positions_S = torch.arange(size, device=lengths_B.device)
        self._biases: dict[tuple[int | None, int], Tensor] = {}
        self._rotations: dict[tuple[float, int], tuple[Tensor, Tensor]] = {}

    def bias(self, window: int | None, num_heads: int) -> Tensor:
        key = (window, num_heads)
        if key not in self._biases:
            alibi = self.config.positions == "alibi"
            slopes_N = alibi_slopes(num_heads).to(self.lengths_B.device) if alibi else None
            self._biases[key] = attention_bias(self.lengths_B, self.size, slopes_N, window, self.config.causal)
        return self._biases[key]

    def rotation(self, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
        key = (theta, head_width)
        if key not in self._rotations:
            self._rotations[key] = rotations(self.positions_S, head_width, theta)
        return self._rotations[key]


def _block(block: Block, qkv: nn.Module, x_BSD: Tensor, batch: _Batch, rows_M: Tensor | None) -> Tensor:
    residual = x_BSD if rows_M is None else x_BSD.flatten(0, 1).index_select(0, rows_M)
    if block.pre_norm:
        x = residual + _attention(block.attention, qkv, _norm(block.attention_norm, x_BSD), batch, rows_M)
        return x + block.mlp(_norm(block.mlp_norm, x))
    x = _norm(block.attention_norm, residual + _attention(block.attention, qkv, x_BSD, batch, rows_M))
    return _norm(block.mlp_norm, x + block.mlp(x))


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    """The norm; RMSNorm from its parts, because exporters lack the operator."""
    if isinstance(norm, RMSNorm):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps) * norm.weight
    normed: Tensor = norm(x)
    return normed


def _attention(attention: Attention, qkv: nn.Module, x_BSD: Tensor, batch: _Batch, rows_M: Tensor | None) -> Tensor:
    num_heads, head_width = attention.num_heads, attention.head_width
    shape = (*x_BSD.shape[:2], num_heads, head_width)
    q, k, v = (part.view(shape).transpose(1, 2) for part in qkv(x_BSD))
    if attention.theta is not None:
        cos_SH, sin_SH = batch.rotation(head_width, attention.theta)
        q, k = _rotate(q, cos_SH, sin_SH), _rotate(k, cos_SH, sin_SH)
    bias = batch.bias(attention.window, num_heads)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
    mixed = mixed if rows_M is None else mixed.flatten(0, 1).index_select(0, rows_M)
    out: Tensor = attention.out(mixed)
    return out


def _rotate(x_BNSH: Tensor, cos_SH: Tensor, sin_SH: Tensor) -> Tensor:
    first, second = x_BNSH.chunk(2, dim=-1)
    return x_BNSH * cos_SH + torch.cat((-second, first), dim=-1) * sin_SH


def example_inputs(config: EncoderConfig) -> dict[str, Tensor]:
    """Inputs of a small batch for tracers, by the names that every exported graph keeps."""
    batch = Packed.from_sequences([[1, 2, 3], [1, 2]])
    return {name: torch.from_numpy(values) for name, values in padded_inputs(batch, config, None).items()}


def padded_inputs(batch: Packed, config: EncoderConfig, select_M: Tensor | None) -> dict[str, np.ndarray]:
    """A batch as an exported graph takes it: int64 "ids" `(B, S)`, "lengths" `(B,)`, "types" `(B, S)` where the config
    has any, and "rows" `(M,)`: places in the flattened batch of the tokens at `select_M`, or of all.

    Raises:
        InputError: a document longer than a learned position table.
    """
    if config.positions == "learned" and batch.max_len > config.max_len:
        raise InputError(
            f"a document has {batch.max_len} tokens, the model has {config.max_len} learned positions: "
            "truncate or split it, or use a model with ALiBi or rotary positions"
        )
    batch = batch.to("cpu")
    rows_T = batch.document_T * batch.max_len + batch.positions_T
    inputs = {"ids": batch.to_padded(batch.tokens_T), "lengths": torch.tensor(batch.lengths)}
    if config.token_types > 1:
        types_T = batch.token_types_T
        inputs["types"] = torch.zeros_like(inputs["ids"]) if types_T is None else batch.to_padded(types_T)
    inputs["rows"] = rows_T if select_M is None else rows_T[select_M.cpu()]
    return {name: values.contiguous().numpy() for name, values in inputs.items()}
