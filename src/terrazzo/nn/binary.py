"""Weights, activations and attention of one bit each, in floats: what a binary encoder computes, and its gradients.

A sign is +1 from 0 up and -1 below, so that everything binary has exactly two values.

Shapes: O rows, I columns, T packed tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from terrazzo.nn.config import EncoderConfig
from terrazzo.nn.linear import Linear, StackedLinear


class _StraightThrough(torch.autograd.Function):
    """Forward the binary value, backward the gradient where the real one lies strictly between -1 and 1."""

    @staticmethod
    def forward(ctx: Any, real: Tensor, binary: Tensor) -> Tensor:
        ctx.save_for_backward(real)
        return binary

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (real,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grad, real, -1, 1), None


def signs(x: Tensor) -> Tensor:
    """+1 from 0 up, -1 below, in the type of `x`, without a gradient."""
    return torch.where(x.detach() >= 0, 1.0, -1.0).to(x.dtype)


def binary_activation(x: Tensor) -> Tensor:
    """The sign of every entry, with no scale.

    Reference: BiBERT (arXiv 2203.06390), section 2.
    """
    binary: Tensor = _StraightThrough.apply(x, signs(x))
    return binary


def binary_weight(weight_OI: Tensor) -> Tensor:
    """`a sign(w - mean(w))` row by row, where a is the mean of |w| and has no gradient: two values a row.

    The gradient of an entry is that of its binary value, where |w - mean(w)| < 1, through the mean.

    Reference: BiBERT (arXiv 2203.06390), section 2; the gradient as in its released code.
    """
    centred_OI = weight_OI - weight_OI.mean(1, keepdim=True)
    scale_O1 = weight_OI.detach().abs().mean(1, keepdim=True)
    binary_OI = torch.where(centred_OI.detach() >= 0, scale_O1, -scale_O1)
    binary: Tensor = _StraightThrough.apply(centred_OI, binary_OI)
    return binary


def binary_attention(scores: Tensor) -> Tensor:
    """1 where a score is above 0, else 0, in place of a softmax; 0 where a token sees nothing.

    Zero is the threshold at which a symmetric score says most. The paper writes "at least 0", its released code takes 0
    itself as unseen, as here.

    Reference: Bi-Attention, BiBERT (arXiv 2203.06390), section 3.2.
    """
    binary: Tensor = _StraightThrough.apply(scores, (scores.detach() > 0).to(scores.dtype))
    return binary


class BinaryLinear(Linear):
    """A linear layer that computes with binary weights and inputs and trains the real weights behind them."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(binary_activation(input), binary_weight(self.weight), self.bias)


class BinaryStackedLinear(StackedLinear):
    """Several binary matrices of one input."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(binary_activation(input), binary_weight(self.weight), self.bias)


def linear_classes(config: EncoderConfig) -> tuple[type[Linear], type[StackedLinear]]:
    """What the blocks of an encoder are made of."""
    return (BinaryLinear, BinaryStackedLinear) if config.binary else (Linear, StackedLinear)
