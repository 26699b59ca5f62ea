"""Rounding that makes up for itself: each column's error is taken back by the columns after it.

Shapes: O rows, I columns.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from terrazzo.checkpoint.packing import PackedTensor
from terrazzo.compression.quantise.grids import Fit, codes, nearest
from terrazzo.compression.sparsegpt import inverse_factor

_STEP = 128


@torch.no_grad()
def compensated(
    weight_OI: Tensor, gram_II: Tensor, bits: int, group: int = 128, fit: Fit = "error", damp: float = 0.01
) -> PackedTensor:
    """A matrix rounded so that its outputs on the calibration inputs change little.

    The grids are those of the weights as they are; columns go by falling size of their inputs.

    Args:
        gram_II: X X' of the calibration inputs; its scale does not matter.
        group, fit: see `grids.nearest`; damp: share of the mean of the diagonal that is added to it.

    Raises:
        InputError: inputs that depend on each other for all the damping, or numbers that are not finite.

    Reference: GPTQ (arXiv 2210.17323), algorithm 1, with fixed grids and the order of its later "act-order".
    """
    diagonal_I = gram_II.diagonal()
    first = nearest(weight_OI, bits, group, fit, (diagonal_I / diagonal_I.mean().clamp_min(1e-30)).clamp_min(1e-6))
    order_I = diagonal_I.argsort(descending=True, stable=True)
    factor_II = inverse_factor(gram_II[order_I][:, order_I], damp).float()
    step_IO, lowest_IO = (part_OI.T[order_I].contiguous() for part_OI in first.spread())
    work_IO = weight_OI.float().T[order_I].contiguous()
    codes_IO = torch.empty_like(work_IO, dtype=torch.uint8)
    for start in range(0, len(work_IO), _STEP):
        stop = min(start + _STEP, len(work_IO))
        errors_CO = torch.empty_like(work_IO[start:stop])
        for column in range(start, stop):
            step_O, lowest_O = step_IO[column], lowest_IO[column]
            codes_IO[column] = codes(work_IO[column], step_O, lowest_O, bits)
            errors_CO[column - start] = (
                work_IO[column].sub(step_O * codes_IO[column] + lowest_O).div_(factor_II[column, column])
            )
            ahead = slice(column + 1, stop)
            work_IO[ahead].addr_(factor_II[column, ahead], errors_CO[column - start], alpha=-1)
        work_IO[stop:].addmm_(factor_II[start:stop, stop:].T, errors_CO, alpha=-1)
    codes_OI = torch.empty_like(first.codes_OI)
    codes_OI[:, order_I] = codes_IO.T
    return replace(first, codes_OI=codes_OI)
