"""Dropout whose masks cost little on a CPU.

PyTorch draws element by element; here one 64-bit number serves four elements.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero each element with probability `p`, to 1/65536, and scale the others so that the mean stays.

    The mask is drawn from PyTorch's own generator. On a GPU this is PyTorch's kernel.

    Reference: Srivastava et al., Dropout (2014), with the scaling moved from inference to training.
    """
    if x.device.type != "cpu":
        return F.dropout(x, p)
    dropped: Tensor = _Masked.apply(x, keep_mask(x, p))
    return dropped


def keep_mask(x: Tensor, p: float) -> Tensor:
    """0 where an element of `x` falls out, else the scale, in the shape and type of `x`."""
    levels = 2**16
    least = round(p * levels)
    if least == levels:
        return torch.zeros_like(x)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    draws = words.view(torch.int16)[: x.numel()].view(x.shape)
    kept = (draws >= least - levels // 2).to(x.dtype)
    return kept.mul_(levels / (levels - least))


class Dropout(nn.Dropout):
    """`dropout` while training, nothing in evaluation."""

    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p) if self.training and self.p > 0 else input


class _Masked(torch.autograd.Function):
    """A product whose mask has no gradient, so that its input need not be kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return grad * mask, None
