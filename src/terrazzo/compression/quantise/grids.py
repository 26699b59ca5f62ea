"""Steps and lowest values of groups: by their smallest and largest entry, or with less error than that.

Shapes: O rows, I columns, G groups of a row, W columns of a group, B rows done together.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from terrazzo.checkpoint.packing import PackedTensor
from terrazzo.errors import InputError

Fit = Literal["range", "error"]
#: A group whose values differ by less than this share of the largest is constant: fp16 could not tell them apart.
_CONSTANT = 2**-10
_ROWS = 2048
_CLIPS, _REFITS = 10, 4


def nearest(
    weight_OI: Tensor, bits: int, group: int, fit: Fit = "range", importance_I: Tensor | None = None
) -> PackedTensor:
    """A matrix rounded to the nearest of 2 ** bits evenly spaced values in every group.

    With `fit="range"` the values of the result, rounded once more, stay as they are.

    Args:
        group: columns that share a grid; 0 is the whole row.
        fit: see `grid`; importance_I: how much the squared error of a column counts, for `fit="error"`.

    Raises:
        InputError: weights beyond fp16.
    """
    grid_OG2 = grid(weight_OI, bits, group, fit, importance_I)
    group = group or weight_OI.shape[1]
    empty = PackedTensor(torch.empty_like(weight_OI, dtype=torch.uint8), grid_OG2, bits, group)
    step_OI, lowest_OI = empty.spread()
    return PackedTensor(codes(weight_OI, step_OI, lowest_OI, bits), grid_OG2, bits, group)


def codes(weight: Tensor, step: Tensor, lowest: Tensor, bits: int) -> Tensor:
    """The codes of the nearest values, uint8; 0 where a group has but one value."""
    return _rounded(weight, step, lowest, bits).to(torch.uint8)


def _rounded(weight: Tensor, step: Tensor, lowest: Tensor, bits: int) -> Tensor:
    return ((weight - lowest) / step.where(step > 0, torch.inf)).round_().clamp_(0, (1 << bits) - 1)


def grid(
    weight_OI: Tensor, bits: int, group: int = 128, fit: Fit = "range", importance_I: Tensor | None = None
) -> Tensor:
    """Step and lowest value of every group, fp16 `(O, G, 2)`.

    Args:
        fit: "range" runs from the smallest to the largest entry, as Q-BERT's grids do; "error" looks for the grid with
            the least squared error: narrower ranges, then least squares on the codes that they give.

    Raises:
        InputError: weights beyond fp16.

    Reference: Q-BERT (arXiv 1909.05840), its uniform quantiser and its groups.
    """
    columns = weight_OI.shape[1]
    width = group or columns
    weight_OI = weight_OI.detach().float()
    if not float(weight_OI.abs().max()) <= torch.finfo(torch.float16).max:
        raise InputError("a weight is not finite or beyond fp16's 65504: the model is damaged")
    short = -columns % width
    # A group that is short is filled with its last entry, which does not count.
    padded_OI = F.pad(weight_OI[:, None], (0, short), mode="replicate")[:, 0] if short else weight_OI
    counts_I = torch.ones(columns) if importance_I is None else importance_I.float()
    counts_GW = F.pad(counts_I.to(weight_OI.device), (0, short)).view(-1, width)
    parts = [_fitted(part_BI.unflatten(1, (-1, width)), counts_GW, bits, fit) for part_BI in padded_OI.split(_ROWS)]
    return torch.cat(parts)


def _fitted(groups_BGW: Tensor, counts_GW: Tensor, bits: int, fit: Fit) -> Tensor:
    lowest_BG, highest_BG = torch.aminmax(groups_BGW, dim=2)
    best_BG2 = _from_ends(lowest_BG, highest_BG, bits)
    if fit == "range" or bits > 6:
        return best_BG2
    error_BG = _error(groups_BGW, best_BG2, counts_GW, bits)
    middle_BG, reach_BG = (lowest_BG + highest_BG) / 2, (highest_BG - lowest_BG) / 2
    for share in torch.linspace(1, 1 - 2.4 / 2**bits, _CLIPS)[1:].tolist():
        clipped_BG2 = _from_ends(middle_BG - share * reach_BG, middle_BG + share * reach_BG, bits)
        best_BG2, error_BG = _better(groups_BGW, counts_GW, bits, (best_BG2, error_BG), clipped_BG2)
    for _ in range(_REFITS):
        solved_BG2 = _least_squares(groups_BGW, best_BG2, counts_GW, bits)
        best_BG2, error_BG = _better(groups_BGW, counts_GW, bits, (best_BG2, error_BG), solved_BG2)
    return best_BG2


def _from_ends(lowest: Tensor, highest: Tensor, bits: int) -> Tensor:
    """The grid whose first and last code are the ends; its own ends give the same grid once more."""
    most = (1 << bits) - 1
    start = _not_below(lowest)
    reach = (highest - start.float()).clamp_min(0)
    step = (reach / most).half()
    # Among fp16's smallest numbers a step that is rounded up may leave the last code unused: take the next one down.
    unused = (step > 0) & ((reach / step.float()).round() < most)
    step = torch.where(unused, (step.view(torch.int16) - 1).view(torch.float16), step)
    covered = most * step.float()
    size = torch.maximum(start.float().abs(), (start.float() + covered).abs())
    return torch.stack([step.where(covered > _CONSTANT * size, 0), start], dim=-1)


def _not_below(values: Tensor) -> Tensor:
    """The least fp16 numbers that are not below these, so that the first code is used."""
    half = values.half()
    next_one = (half.view(torch.int16) + torch.where(half < 0, -1, 1).to(torch.int16)).view(torch.float16)
    return torch.where(half.float() < values, next_one, half)


def _error(groups_BGW: Tensor, grid_BG2: Tensor, counts_GW: Tensor, bits: int) -> Tensor:
    step, lowest = grid_BG2.float().unsqueeze(2).unbind(-1)
    off = _rounded(groups_BGW, step, lowest, bits).mul_(step).add_(lowest).sub_(groups_BGW)
    return off.square_().mul_(counts_GW).sum(2)


def _better(
    groups_BGW: Tensor, counts_GW: Tensor, bits: int, best: tuple[Tensor, Tensor], tried_BG2: Tensor
) -> tuple[Tensor, Tensor]:
    best_BG2, error_BG = best
    tried_BG = _error(groups_BGW, tried_BG2, counts_GW, bits)
    wins_BG = tried_BG < error_BG
    return torch.where(wins_BG[..., None], tried_BG2, best_BG2), torch.where(wins_BG, tried_BG, error_BG)


def _least_squares(groups_BGW: Tensor, grid_BG2: Tensor, counts_GW: Tensor, bits: int) -> Tensor:
    """The grid that fits best the codes that another gives; that one where they are all alike."""
    step, lowest = grid_BG2.float().unsqueeze(2).unbind(-1)
    codes_BGW = _rounded(groups_BGW, step, lowest, bits)
    total_G = counts_GW.sum(1)
    code_BG, value_BG = (codes_BGW * counts_GW).sum(2), (groups_BGW * counts_GW).sum(2)
    square_BG = (codes_BGW.square() * counts_GW).sum(2)
    product_BG = (codes_BGW * groups_BGW * counts_GW).sum(2)
    spread_BG = total_G * square_BG - code_BG.square()
    step_BG = (total_G * product_BG - code_BG * value_BG) / spread_BG.clamp_min(1e-30)
    lowest_BG = (value_BG - step_BG * code_BG) / total_G.clamp_min(1e-30)
    solved_BG2 = torch.stack([step_BG, lowest_BG], dim=-1).half()
    sound_BG = (spread_BG > 1e-12 * square_BG * total_G) & (step_BG > 0) & solved_BG2.isfinite().all(-1)
    return torch.where(sound_BG[..., None], solved_BG2, grid_BG2)
