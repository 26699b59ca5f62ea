"""Blocks of weights emptied one removal after the other: what each costs at its turn.

Shapes: K blocks, B entries of a block, G groups of a block, Q entries of a group.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def greedy_prices(inverse_KBB: Tensor, w_KB: Tensor, gone_KG: Tensor) -> Tensor:
    """The price of each group at its turn, `(K, G)`; `inverse_KBB` and `w_KB` are used up."""
    num_blocks, width = w_KB.shape
    num_groups = gone_KG.shape[1]
    group = width // num_groups
    own_KGQQ = inverse_KBB.view(-1, num_groups, group, num_groups, group).diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
    w_KGQ, gone_KG = w_KB.view(-1, num_groups, group), gone_KG.clone()
    order_KG = torch.full_like(gone_KG, num_groups, dtype=torch.int64)
    prices_KG, highest_K = w_KB.new_zeros(num_blocks, num_groups), w_KB.new_zeros(num_blocks)
    inner_Q = torch.arange(group, device=w_KB.device)
    for turn in range(num_groups):
        solved_KGQ = w_KGQ / own_KGQQ[..., 0] if group == 1 else torch.linalg.solve(own_KGQQ, w_KGQ)
        price_K, chosen_K = ((w_KGQ * solved_KGQ).sum(2) / 2).masked_fill(gone_KG, torch.inf).min(1)
        active_K = price_K.isfinite()
        highest_K = torch.where(active_K, torch.maximum(highest_K, price_K), highest_K)
        # Where nothing is left, a price that pools with none before it.
        prices_KG[:, turn] = torch.where(active_K, price_K, highest_K)
        order_KG[:, turn] = torch.where(active_K, chosen_K, num_groups)
        _eliminate(inverse_KBB, w_KB, chosen_K[:, None] * group + inner_Q)
        gone_KG.scatter_(1, chosen_K[:, None], True)
    own_price = w_KB.new_zeros(num_blocks, num_groups + 1).scatter_(1, order_KG, rising(prices_KG))
    return own_price[:, :num_groups]


def rising(prices_KG: Tensor) -> Tensor:
    """The closest rows that never fall: runs of prices that fall are replaced by their means.

    What goes after the first of such a run goes with it at that mean, so a threshold is met at the least total.

    Reference: the max-min formula of isotonic regression (Robertson, Wright and Dykstra, 1988).
    """
    num_groups = prices_KG.shape[1]
    sums = F.pad(prices_KG.cumsum(1), (1, 0))
    best = torch.full_like(prices_KG, -torch.inf)
    for first in range(num_groups):
        lengths = torch.arange(1, num_groups - first + 1, device=sums.device)
        means = (sums[:, first + 1 :] - sums[:, first, None]) / lengths
        best[:, first:] = torch.maximum(best[:, first:], means.flip(1).cummin(1).values.flip(1))
    return best


def _eliminate(inverse_KBB: Tensor, w_KB: Tensor, columns_KQ: Tensor) -> None:
    """Remove one group of every block in place: the weights and the inverse that are left; nothing for those gone."""
    width, group = w_KB.shape[1], columns_KQ.shape[1]
    rows_KQB = inverse_KBB.gather(1, columns_KQ[:, :, None].expand(-1, -1, width))
    own_KQQ = rows_KQB.gather(2, columns_KQ[:, None].expand(-1, group, -1))
    moved_KQB = rows_KQB / own_KQQ if group == 1 else torch.linalg.solve(own_KQQ, rows_KQB)
    removed_KQ = w_KB.gather(1, columns_KQ)
    for q in range(group):  # elementwise, for batched products of so thin matrices run one by one
        w_KB.addcmul_(removed_KQ[:, q, None], moved_KQB[:, q], value=-1)
        inverse_KBB.addcmul_(rows_KQB[:, q, :, None], moved_KQB[:, q, None], value=-1)
    w_KB.scatter_(1, columns_KQ, 0)
    inverse_KBB.scatter_(1, columns_KQ[:, :, None].expand(-1, -1, width), 0)
    inverse_KBB.scatter_(2, columns_KQ[:, None].expand(-1, width, -1), 0)
    inverse_KBB.diagonal(dim1=1, dim2=2).scatter_(1, columns_KQ, 1)
