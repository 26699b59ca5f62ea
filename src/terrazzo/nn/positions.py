"""Position encodings: ALiBi slopes and rotary rotations. The learned table lives in the embeddings.

A new encoding goes here as a pure function of positions, and is applied where `attention.py` applies these.

Shapes: T packed tokens, N heads, H head width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def alibi_slopes(num_heads: int) -> Tensor:
    """The slope of each head's distance penalty, fp32 `(num_heads,)`.

    For a power of two: 2^(-8 k / n). For others, the slopes of the next lower power of two, then every second slope of
    the next higher one.

    Reference: ALiBi (arXiv 2108.12409), section 3; bidirectional use in MosaicBERT (arXiv 2312.17482).
    """
    lower = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (k + 1) / lower) for k in range(lower)]
    slopes += [2 ** (-8 * (k + 1) / (2 * lower)) for k in range(0, 2 * (num_heads - lower), 2)]
    return torch.tensor(slopes, dtype=torch.float32)


def rotations(positions_T: Tensor, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary embeddings, each fp32 `(T, head_width)`, the two halves alike.

    Reference: RoFormer (arXiv 2104.09864), Eq. 34, in the half-split layout of GPT-NeoX.
    """
    exponents = torch.arange(0, head_width, 2, device=positions_T.device, dtype=torch.float32) / head_width
    angles = positions_T[:, None].float() * theta**-exponents
    both = torch.cat((angles, angles), dim=-1)
    return both.cos(), both.sin()


def rotate(x_TKNH: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
    """Rotate the head width of `(T, K, N, H)` queries and keys, in fp32, returned in their own dtype."""
    x = x_TKNH.float()
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x * cos_TH[:, None, None] + turned * sin_TH[:, None, None]).to(x_TKNH.dtype)
