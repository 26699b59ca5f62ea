"""Optimal brain surgery: what removing weights costs, and how those that stay make up for it.

Shapes: D rows, F columns, G groups of columns, W columns of a group, R columns that are removed.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from terrazzo.compression.sites import columns_of
from terrazzo.errors import InputError


class Curvature(Protocol):
    """A quadratic model of the loss around weights, as `obs_remove` sees it."""

    def prices(self, weight: Tensor) -> Tensor:
        """What removing each group alone would add to the loss; infinite for those that are gone."""

    def remove(self, weight: Tensor, groups: Tensor) -> float:
        """Remove `groups` together: update `weight` and the curvature in place, return what it added to the loss."""


def obs_remove(weight: Tensor, curvature: Curvature, count: int, at_once: int = 1) -> tuple[list[int], list[float]]:
    """Remove `count` groups from `weight` in place, cheapest first, with new prices after every `at_once` of them.

    Returns:
        the groups in the order in which they went, and what each removal added to the loss.

    Raises:
        torch.linalg.LinAlgError: the precision of the curvature does not suffice.

    Reference: optimal brain surgeon (Hassibi and Stork, 1993), for groups as in ZipLM (arXiv 2302.04089), algorithm 1.
    """
    groups: list[int] = []
    losses: list[float] = []
    while len(groups) < count:
        together = min(at_once, count - len(groups))
        cheapest = curvature.prices(weight).topk(together, largest=False).indices
        losses.append(curvature.remove(weight, cheapest))
        groups += cheapest.tolist()
    return groups, losses


class Gram:
    """The inverse of H = X X' for the inputs X of a matrix, which all its rows share.

    The loss of weights W' in place of W is the squared error ||(W' - W) X||^2 = tr((W' - W) H (W' - W)').

    Args:
        inverse_FF: the inverse of H with its damping; changed in place by `remove`.
        group: columns of one group, neighbours.

    Reference: ZipLM (arXiv 2302.04089), Eq. 2 and 3 and the update of the inverse after them.
    """

    def __init__(self, inverse_FF: Tensor, group: int = 1) -> None:
        assert inverse_FF.shape[0] % group == 0, (inverse_FF.shape, group)
        self.inverse_FF, self.group = inverse_FF, group
        self.gone_G = torch.zeros(len(inverse_FF) // group, dtype=torch.bool, device=inverse_FF.device)

    @classmethod
    def of(cls, gram_FF: Tensor, group: int = 1, damping: float = 0.01, dtype: torch.dtype = torch.float32) -> Gram:
        """The curvature of inputs with this X X', inverted in float64 and kept in `dtype`.

        `damping` times the mean of the diagonal is added to it; an input that is always zero gets 1 instead of 0.

        Raises:
            InputError: X X' has no inverse with so little damping.
        """
        damped_FF = gram_FF.to(torch.float64, copy=True)
        diagonal_F = damped_FF.diagonal()
        added = damping * diagonal_F.mean() if len(diagonal_F) else 0.0
        diagonal_F[diagonal_F == 0] = 1.0
        diagonal_F += added
        factor_FF, failed = torch.linalg.cholesky_ex(damped_FF)
        if failed:
            raise InputError(
                f"damping {damping}: the inputs of a matrix with {len(gram_FF)} columns depend on each other: "
                "give more calibration texts or more damping (0.01)"
            )
        return cls(torch.cholesky_inverse(factor_FF).to(dtype), group)

    def diag(self) -> Tensor:
        """The diagonal of the inverse, `(F,)`."""
        return self.inverse_FF.diagonal()

    def blocks(self) -> Tensor:
        """The inverse's blocks on the diagonal, `(G, W, W)`."""
        num_groups = len(self.gone_G)
        blocks_GWGW = self.inverse_FF.view(num_groups, self.group, num_groups, self.group)
        return blocks_GWGW.diagonal(dim1=0, dim2=2).permute(2, 0, 1)

    def prices(self, weight_DF: Tensor) -> Tensor:
        """The squared error that removing each group would add, `(G,)`; infinite for those that are gone."""
        if self.group == 1:
            prices_G = torch.linalg.vector_norm(weight_DF, dim=0).square_() / self._positive(self.diag())
        else:
            columns_GWD = weight_DF.T.view(len(self.gone_G), self.group, -1)
            solved_GWD = torch.linalg.solve_triangular(_cholesky(self.blocks()), columns_GWD, upper=False)
            prices_G = solved_GWD.square().sum((1, 2))  # Eq. 2
        return prices_G.masked_fill_(self.gone_G, torch.inf)

    def remove(self, weight_DF: Tensor, groups: Tensor) -> float:
        """Remove `groups` together from `weight_DF` with the best update of all that stays; both change in place."""
        columns_R = columns_of(groups, self.group)
        rows_RF = self.inverse_FF[columns_R]
        factor_RR = _cholesky(rows_RF[:, columns_R])
        solved_RF = torch.cholesky_solve(rows_RF, factor_RR)
        removed_DR = weight_DF[:, columns_R]
        loss = (removed_DR.T @ removed_DR * torch.cholesky_inverse(factor_RR)).sum()
        weight_DF.addmm_(removed_DR, solved_RF, alpha=-1)  # Eq. 3
        self.inverse_FF.addmm_(rows_RF.T, solved_RF, alpha=-1)
        weight_DF[:, columns_R] = 0
        self.inverse_FF[columns_R] = 0
        self.inverse_FF[:, columns_R] = 0
        self.inverse_FF[columns_R, columns_R] = 1
        self.gone_G[groups] = True
        return float(loss)

    def restricted(self, groups: Tensor) -> Gram:
        """The curvature of `groups` alone; of all that are left, the inverse of their part of H."""
        columns_K = columns_of(groups, self.group)
        return type(self)(self.inverse_FF[columns_K][:, columns_K], self.group)

    def _positive(self, diagonal_F: Tensor) -> Tensor:
        if diagonal_F.min() <= 0:
            raise torch.linalg.LinAlgError("an inverse lost its positive diagonal")
        return diagonal_F


def _cholesky(blocks: Tensor) -> Tensor:
    factors, failed = torch.linalg.cholesky_ex(blocks)
    if failed.any():
        raise torch.linalg.LinAlgError("a block of an inverse is not positive definite")
    return factors
