"""SparseGPT: columns left to right, each row losing its cheapest entries and moving what comes after them.

Shapes: O rows and I columns of a matrix, one column for each input, C columns of a step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from terrazzo.compression.unstructured import NM, pattern_mask
from terrazzo.errors import InputError


@torch.no_grad()
def sparsegpt(
    weight_OI: Tensor,
    gram_II: Tensor,
    target: float | NM,
    *,
    damp: float = 0.01,
    step: int = 128,
    keep_OI: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A matrix pruned so that its outputs on the calibration inputs change little.

    Args:
        gram_II: X X' of the calibration inputs; its scale does not matter.
        target: share of the entries that goes, chosen among those of `step` neighbouring columns, or a pattern.
        damp: share of the mean of the diagonal that is added to it.
        keep_OI: what an earlier pruning left; the rest stays zero, and counts among the columns of its step.

    Returns:
        the new weights, and True for the entries that stay.

    Raises:
        InputError: a share outside 0 to 1, a pattern that does not divide the columns, inputs that depend on each
            other for all the damping, or numbers that are not finite.

    Reference: SparseGPT (arXiv 2301.00774), Algorithm 1.
    """
    if not isinstance(target, NM) and not 0 <= target <= 1:
        raise InputError(f"sparsity {target}: a share of the weights, 0 to 1")
    if isinstance(target, NM):
        step = max(target.of, step // target.of * target.of)
    factor_II = inverse_factor(gram_II, damp).to(weight_OI.dtype)
    work_OI = weight_OI.masked_fill(gram_II.diagonal() == 0, 0)
    if keep_OI is not None:
        work_OI.masked_fill_(~keep_OI, 0)
    kept_OI = torch.ones_like(weight_OI, dtype=torch.bool)
    num_rows, num_columns = weight_OI.shape
    for first in range(0, num_columns, step):
        last = min(first + step, num_columns)
        span, prior = slice(first, last), None if keep_OI is None else keep_OI[:, first:last]
        if not isinstance(target, NM):
            # Rounded from the start of the matrix on, so that its own share is exact whatever the steps.
            count = round(target * num_rows * last) - round(target * num_rows * first)
            scores_OC = _scores(work_OI[:, span], factor_II.diagonal()[span], prior)
            lowest = scores_OC.flatten().topk(count, largest=False, sorted=False).indices
            kept_OI[:, span] = torch.ones_like(scores_OC).flatten().index_fill_(0, lowest, 0).view_as(scores_OC).bool()
            if prior is not None:
                kept_OI[:, span] &= prior
        pattern = target if isinstance(target, NM) else None
        errors_OC = _sweep(work_OI[:, span], factor_II[span, span], kept_OI[:, span], prior, pattern)
        work_OI[:, last:] -= errors_OC @ factor_II[span, last:]
    return work_OI, kept_OI


def inverse_factor(gram_II: Tensor, damp: float) -> Tensor:
    """The upper Cholesky factor of the damped inverse, float64: its rows are what later columns are moved by."""
    damped_II = gram_II.to(torch.float64, copy=True)
    if not damped_II.isfinite().all():
        raise InputError("gram: it has entries that are not finite; look for broken calibration texts")
    diagonal_I = damped_II.diagonal()
    mean = diagonal_I.mean()
    diagonal_I[diagonal_I == 0] = 1
    diagonal_I += damp * mean
    factor_II, failed = torch.linalg.cholesky_ex(damped_II)
    if failed:
        raise InputError(f"damp {damp}: the inputs depend on each other; give more calibration texts or more damping")
    return torch.linalg.cholesky(torch.cholesky_inverse(factor_II), upper=True)


def _scores(weight_OC: Tensor, diagonal_C: Tensor, prior_OC: Tensor | None) -> Tensor:
    scores_OC = (weight_OC / diagonal_C).square()
    return scores_OC if prior_OC is None else scores_OC.masked_fill(~prior_OC, -torch.inf)


def _sweep(work_OC: Tensor, factor_CC: Tensor, kept_OC: Tensor, prior_OC: Tensor | None, pattern: NM | None) -> Tensor:
    """Go through the columns of a step in place; returns what each entry owes to the columns after the step."""
    errors_OC = torch.zeros_like(work_OC)
    for column in range(work_OC.shape[1]):
        if pattern is not None and column % pattern.of == 0:
            group = slice(column, column + pattern.of)
            prior = None if prior_OC is None else prior_OC[:, group]
            best = pattern_mask(_scores(work_OC[:, group], factor_CC.diagonal()[group], prior), pattern)
            kept_OC[:, group] = best if prior is None else best & prior
        kept_O = kept_OC[:, column]
        errors_OC[:, column] = work_OC[:, column].masked_fill(kept_O, 0) / factor_CC[column, column]
        work_OC[:, column].masked_fill_(~kept_O, 0)
        work_OC[:, column + 1 :] -= errors_OC[:, column, None] * factor_CC[column, column + 1 :]
    return errors_OC
