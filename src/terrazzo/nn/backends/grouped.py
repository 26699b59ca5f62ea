"""Attention on CPU: documents of similar length share one call of PyTorch's flash kernel.

A plan is made once a batch and serves every layer. Documents are sorted by length and cut into groups whose longest
is at most `SLACK` times the shortest; a group is a small padded batch, and only its keys' padding is masked. Gathering
into groups and scattering out of them are plain row selections, in the backward pass too, because every token has
one place.

Shapes: T packed tokens, R rows of all groups with their padding, B documents of a group, S its padded length, N heads,
H head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from terrazzo.nn.dropout import dropout as masked_out
from terrazzo.nn.dropout import keep_mask
from terrazzo.nn.softmax import Weigh, softmax
from terrazzo.packed import Packed

#: Longest over shortest document of a group: padding costs at most this much, fewer groups mean fewer kernel calls.
SLACK = 1.125

_flash_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Group:
    """Documents that share one kernel call; the bias broadcasts to `(B, N, S, S)`."""

    num_documents: int
    max_len: int
    bias: Tensor | None

    @property
    def num_rows(self) -> int:
        return self.num_documents * self.max_len


@dataclass(frozen=True)
class GroupedPlan:
    """Where each token goes and what each group adds to its scores.

    Args:
        token_R: the token that fills each row; padding repeats its document's first token.
        row_T: the row of each token.
        causal: the kernel hides later tokens itself; so it hides padding, which comes after all tokens.
    """

    token_R: Tensor
    row_T: Tensor
    groups: tuple[Group, ...]
    causal: bool = False


class Grouped:
    """Length-grouped attention, forward and backward, fp32 and bf16."""

    def plan(self, batch: Packed, slopes_N: Tensor | None, window: int | None, causal: bool = False) -> GroupedPlan:
        """Group the documents of a batch; cost is a few vectorised passes over its tokens."""
        lengths = np.asarray(batch.lengths)
        starts = np.cumsum(lengths) - lengths
        row_T = np.empty(batch.num_tokens, dtype=np.int64)
        tokens, groups, offset = [], [], 0
        for members in group_by_length(lengths, SLACK):
            size, members_B = int(lengths[members].max()), lengths[members]
            real_BS = np.arange(size) < members_B[:, None]
            token_BS = np.where(real_BS, starts[members][:, None] + np.arange(size), starts[members][:, None])
            row_T[token_BS[real_BS]] = offset + np.flatnonzero(real_BS)
            tokens.append(token_BS.ravel())
            visible_B = np.full_like(members_B, size) if causal else members_B
            groups.append(Group(len(members), size, _group_bias(visible_B, size, slopes_N, window)))
            offset += groups[-1].num_rows
        return GroupedPlan(torch.from_numpy(np.concatenate(tokens)), torch.from_numpy(row_T), tuple(groups), causal)

    def attend(self, qkv_T3NH: Tensor, plan: GroupedPlan, dropout: float) -> Tensor:
        """Attention output `(T, N * H)`; with dropout the weights are formed explicitly, the flash kernel has none."""
        if dropout > 0:
            if qkv_T3NH.dtype != torch.float32:
                return attend_with_dropout(qkv_T3NH, plan, dropout)
            dropped: Tensor = _GroupedDropout.apply(qkv_T3NH, plan, dropout)
            return dropped
        output: Tensor = _GroupedFlash.apply(qkv_T3NH, plan)
        return output

    def attend_explicitly(self, qkv_T3NH: Tensor, plan: GroupedPlan, dropout: float, weigh: Weigh) -> Tensor:
        """Attention output `(T, N * H)`, with any function from scores to weights, step by step."""
        return attend_with_dropout(qkv_T3NH, plan, dropout, weigh)


def group_by_length(lengths: np.ndarray, slack: float) -> list[np.ndarray]:
    """Indices of documents in groups of similar length, shortest first."""
    order = np.argsort(lengths, kind="stable")
    groups, first = [], 0
    while first < len(order):
        last = int(np.searchsorted(lengths[order], lengths[order[first]] * slack, side="right"))
        groups.append(order[first:last])
        first = last
    return groups


def _group_bias(lengths_B: np.ndarray, size: int, slopes_N: Tensor | None, window: int | None) -> Tensor | None:
    """Distance penalties, window and key padding of one group, or None where there is nothing to add."""
    low = torch.finfo(torch.float32).min / 4
    positions = torch.arange(size)
    distance_SS = (positions[:, None] - positions[None]).abs()
    terms = []
    if slopes_N is not None:
        terms.append((-slopes_N[:, None, None] * distance_SS)[None])
    if window is not None and size > window // 2 + 1:
        terms.append((distance_SS > window // 2).float()[None, None] * low)
    if lengths_B.min() < size:
        padding_BS = positions[None] >= torch.from_numpy(lengths_B)[:, None]
        terms.append(padding_BS.float()[:, None, None, :] * low)
    return sum(terms[1:], terms[0]) if terms else None


def _expanded(bias: Tensor | None, group: Group, num_heads: int, dtype: torch.dtype) -> Tensor | None:
    if bias is None:
        return None
    return bias.to(dtype).expand(group.num_documents, num_heads, group.max_len, group.max_len)


class _GroupedFlash(torch.autograd.Function):
    """Flash attention over groups; gradients are written straight into one buffer of the layout of the input."""

    @staticmethod
    def forward(ctx: Any, qkv_T3NH: Tensor, plan: GroupedPlan) -> Tensor:
        _, _, num_heads, head_width = qkv_T3NH.shape
        qkv_R3NH = qkv_T3NH.index_select(0, plan.token_R)
        out_RNH = qkv_R3NH.new_empty(qkv_R3NH.shape[0], num_heads, head_width)
        biases = [_expanded(group.bias, group, num_heads, qkv_T3NH.dtype) for group in plan.groups]
        sums, offset = [], 0
        for group, bias in zip(plan.groups, biases, strict=True):
            rows = slice(offset, offset := offset + group.num_rows)
            q, k, v = _heads(qkv_R3NH[rows], group)
            out, logsumexp = _flash_forward(q, k, v, 0.0, plan.causal, attn_mask=bias)
            _heads(out_RNH[rows], group).copy_(out)
            sums.append(logsumexp)
        ctx.plan, ctx.biases = plan, biases
        ctx.save_for_backward(qkv_R3NH, out_RNH, *sums)
        return out_RNH.index_select(0, plan.row_T).flatten(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        plan: GroupedPlan = ctx.plan
        qkv_R3NH, out_RNH, *sums = ctx.saved_tensors
        grad_RNH = torch.zeros_like(out_RNH)
        grad_RNH[plan.row_T] = grad.view(-1, *out_RNH.shape[1:])
        grad_qkv_R3NH = torch.empty_like(qkv_R3NH)
        offset = 0
        for group, bias, logsumexp in zip(plan.groups, ctx.biases, sums, strict=True):
            rows = slice(offset, offset := offset + group.num_rows)
            q, k, v = _heads(qkv_R3NH[rows], group)
            out, grad_out = _heads(out_RNH[rows], group), _heads(grad_RNH[rows], group)
            grads = _flash_backward(grad_out, q, k, v, out, logsumexp, 0.0, plan.causal, attn_mask=bias)
            for target, value in zip(_heads(grad_qkv_R3NH[rows], group), grads, strict=True):
                target.copy_(value)
        return grad_qkv_R3NH.index_select(0, plan.row_T), None


def _heads(rows: Tensor, group: Group) -> Tensor:
    """View group rows `(B * S, [3,] N, H)` as `([3,] B, N, S, H)`."""
    view = rows.view(group.num_documents, group.max_len, *rows.shape[1:])
    return view.permute(2, 0, 3, 1, 4) if rows.dim() == 4 else view.transpose(1, 2)


class _GroupedDropout(torch.autograd.Function):
    """`attend_with_dropout` in fp32, with its backward pass written out: each group is copied once each way."""

    @staticmethod
    def forward(ctx: Any, qkv_T3NH: Tensor, plan: GroupedPlan, dropout: float) -> Tensor:
        _, _, num_heads, head_width = qkv_T3NH.shape
        qkv_R3NH = qkv_T3NH.index_select(0, plan.token_R)
        out_RNH = qkv_R3NH.new_empty(qkv_R3NH.shape[0], num_heads, head_width)
        saved, offset = [], 0
        for group in plan.groups:
            rows = slice(offset, offset := offset + group.num_rows)
            qkv = _heads(qkv_R3NH[rows], group).contiguous()
            q, k, v = qkv.flatten(1, 2)
            scores = torch.bmm(q, k.mT).mul_(head_width**-0.5).view(*qkv.shape[1:4], group.max_len)
            weights = torch.softmax(_hidden(scores, group, plan.causal), dim=-1).flatten(0, 1)
            kept = keep_mask(weights, dropout)
            _heads(out_RNH[rows], group).copy_(torch.bmm(weights * kept, v).view_as(qkv[0]))
            saved += [qkv, weights, kept]
        ctx.plan, ctx.shape = plan, qkv_R3NH.shape
        ctx.save_for_backward(*saved)
        return out_RNH.index_select(0, plan.row_T).flatten(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        plan: GroupedPlan = ctx.plan
        saved = ctx.saved_tensors
        num_rows, _, num_heads, head_width = ctx.shape
        grad_RNH = grad.new_zeros(num_rows, num_heads, head_width)
        grad_RNH.index_copy_(0, plan.row_T, grad.view(-1, num_heads, head_width))
        grad_qkv_R3NH, offset = grad.new_empty(ctx.shape), 0
        for number, group in enumerate(plan.groups):
            rows = slice(offset, offset := offset + group.num_rows)
            qkv, weights, kept = saved[3 * number : 3 * number + 3]
            q, k, v = qkv.flatten(1, 2)
            grad_out = _heads(grad_RNH[rows], group).reshape_as(v)
            grad_qkv = torch.empty_like(qkv)
            grad_q, grad_k, grad_v = grad_qkv.flatten(1, 2)
            torch.bmm((weights * kept).mT, grad_out, out=grad_v)
            grad_weights = torch.bmm(grad_out, v.mT).mul_(kept)
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype).mul_(head_width**-0.5)
            torch.bmm(grad_scores, k, out=grad_q)
            torch.bmm(grad_scores.mT, q, out=grad_k)
            _heads(grad_qkv_R3NH[rows], group).copy_(grad_qkv)
        return grad_qkv_R3NH.index_select(0, plan.row_T), None, None


def _hidden(scores_BNSS: Tensor, group: Group, causal: bool) -> Tensor:
    """Scores with the group's bias, and without what a causal model must not see."""
    scores = scores_BNSS if group.bias is None else scores_BNSS + group.bias.to(scores_BNSS.dtype)
    if not causal:
        return scores
    return scores.masked_fill(torch.ones(group.max_len, group.max_len, dtype=torch.bool).triu(1), -torch.inf)


def attend_with_dropout(qkv_T3NH: Tensor, plan: GroupedPlan, dropout: float, weigh: Weigh = softmax) -> Tensor:
    """Attention output `(T, N * H)` with weights that fall out, in operations that autograd knows."""
    head_width = qkv_T3NH.shape[3]
    qkv_R3NH = qkv_T3NH.index_select(0, plan.token_R)
    outputs = []
    for group, rows in zip(plan.groups, qkv_R3NH.split([g.num_rows for g in plan.groups]), strict=True):
        q, k, v = _heads(rows, group)
        weights = weigh(_hidden(q @ k.mT * head_width**-0.5, group, plan.causal))
        kept = masked_out(weights, dropout) if dropout > 0 else weights
        outputs.append((kept @ v).transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, plan.row_T).flatten(1)
