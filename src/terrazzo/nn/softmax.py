"""What turns attention scores into weights, where it is not the plain softmax of the fused kernels.

Shapes: any leading ones, the keys last.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from terrazzo.nn.binary import binary_attention
from terrazzo.nn.config import EncoderConfig

#: From scores, minus infinity where a token sees nothing, to weights, 0 there.
Weigh = Callable[[Tensor], Tensor]


def softmax(scores: Tensor) -> Tensor:
    """The plain softmax over keys."""
    return scores.softmax(-1)


def clipped_softmax(scores: Tensor, gamma: float, zeta: float = 1.0) -> Tensor:
    """`clip((zeta - gamma) softmax(scores) + gamma, 0, 1)`: exact zeros, and ones, at finite scores.

    An entry that is clipped has no gradient, so nothing drives its score further out. With gamma 0 and zeta 1 this is
    the softmax, bit for bit.

    Reference: Quantizable Transformers (arXiv 2306.12929), section 4.1.
    """
    return torch.clamp((zeta - gamma) * softmax(scores) + gamma, 0.0, 1.0)


def weighing(config: EncoderConfig) -> Weigh | None:
    """What makes weights of an encoder's scores; None for the plain softmax, which the fused kernels compute."""
    if config.binary:
        return binary_attention
    if config.clips_softmax:
        return partial(clipped_softmax, gamma=config.softmax_gamma, zeta=config.softmax_zeta)
    return None
