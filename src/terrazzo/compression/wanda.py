"""Wanda: weights that meet small inputs go, row by row, and nothing is updated.

Shapes: O rows and I columns of a matrix, one column for each input.
"""

from __future__ import annotations

import torch
from torch import Tensor

from terrazzo.compression.unstructured import NM, pattern_mask
from terrazzo.errors import InputError


def wanda_scores(weight_OI: Tensor, gram_II: Tensor) -> Tensor:
    """|W_ij| times the norm of input j, `(O, I)`.

    Args:
        gram_II: X X' of the calibration inputs, or its diagonal `(I,)`; its scale does not matter.

    Reference: Wanda (arXiv 2306.11695), Eq. 1.
    """
    squares_I = gram_II.diagonal() if gram_II.dim() == 2 else gram_II
    return weight_OI.abs() * squares_I.to(weight_OI.dtype).sqrt()


def wanda(weight_OI: Tensor, gram_II: Tensor, target: float | NM) -> Tensor:
    """True for the entries that stay: in every row the same number, or the pattern's.

    Raises:
        InputError: a share outside 0 to 1, or a pattern that does not divide the columns.

    Reference: Wanda (arXiv 2306.11695).
    """
    scores_OI = wanda_scores(weight_OI, gram_II)
    if isinstance(target, NM):
        return pattern_mask(scores_OI, target)
    if not 0 <= target <= 1:
        raise InputError(f"sparsity {target}: a share of the weights, 0 to 1")
    lowest = scores_OI.topk(round(target * scores_OI.shape[1]), dim=1, largest=False).indices
    return torch.ones_like(scores_OI, dtype=torch.bool).scatter_(1, lowest, False)
