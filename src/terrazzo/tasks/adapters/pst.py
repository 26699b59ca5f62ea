"""PST: parameter-efficient sparse training, thin factors that move frozen weights and score them for pruning.

Shapes: K matrices of one fused layer, I inputs, O outputs of each, R ranks.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from terrazzo.config import config
from terrazzo.errors import InputError
from terrazzo.tasks.adapters.base import AdaptedLinear, largest


@config
class PstConfig:
    """Every matrix of the blocks trained through thin factors and pruned on the way.

    Args:
        sparsity: share of each matrix that is zero in the end.
        rank: of the factors that move weights; score_rank: of those that score them.
        move: factor of the low-rank update (beta); score: of its part in the scores (alpha1); lines: of the scores of
            whole rows and columns (alpha2).
        dense: share of the run before the first weight goes; constant: share at its end with the full sparsity.
            Between them the sparsity rises with the cube of what is left.
        every: steps between two choices of the weights that stay.

    Reference: PST (arXiv 2205.11005), Eq. 5 to 9. The classifier is trained too, which the paper's code leaves out.
    """

    paced: ClassVar[bool] = True
    rate: ClassVar[float] = 1.0
    passes: ClassVar[int] = 3
    layers: ClassVar[tuple[str, ...]] = ("attention.qkv", "attention.out", "mlp.up", "mlp.down")

    kind: Literal["pst"] = "pst"
    sparsity: float = 0.9
    rank: int = 8
    score_rank: int = 8
    move: float = 1.0
    score: float = 1.0
    lines: float = 1.0
    dense: float = 0.1
    constant: float = 0.3
    every: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1:
            raise InputError(f"pst.sparsity is a share above 0 and below 1, got {self.sparsity}")
        for name in ("rank", "score_rank", "every"):
            if getattr(self, name) < 1:
                raise InputError(f"pst.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("dense", "constant"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"pst.{name} is a share of the run in [0, 1), got {getattr(self, name)}")
        if self.dense + self.constant >= 1:
            raise InputError(f"pst.dense {self.dense} and pst.constant {self.constant} leave no time to prune in")

    def build(self, name: str, plain: nn.Linear) -> PstLinear:
        """The adapted layer in the place of a plain one."""
        return PstLinear(plain, self)


def sparsity_at(options: PstConfig, progress: float) -> float:
    """The share of weights that are zero when `progress` of a run is done.

    Reference: cubic schedule of Zhu and Gupta (arXiv 1710.01878), Eq. 1.
    """
    risen = (progress - options.dense) / (1 - options.dense - options.constant)
    if risen >= 1 - 1e-9:
        return options.sparsity
    return options.sparsity * (1 - (1 - max(risen, 0.0)) ** 3)


class PstLinear(AdaptedLinear):
    """Frozen weights moved by U V and multiplied by a mask of the best scores of each matrix.

    The scores are |W + U V| + A B + R + C, and learn through the mask as if it were they (straight-through).
    """

    trained = ("pst_u", "pst_v", "pst_a", "pst_b", "pst_rows", "pst_columns")
    pst_kept: Tensor
    pst_final: Tensor
    pst_steps: Tensor

    def __init__(self, plain: nn.Linear, options: PstConfig) -> None:
        super().__init__(plain)
        self.options = options
        num, outputs, inputs = self.weight_KOI.shape
        new_empty, new_zeros = plain.weight.new_empty, plain.weight.new_zeros
        self.pst_u = nn.Parameter(new_empty(num, outputs, options.rank))
        self.pst_v = nn.Parameter(new_zeros(num, options.rank, inputs))
        self.pst_a = nn.Parameter(new_empty(num, outputs, options.score_rank))
        self.pst_b = nn.Parameter(new_zeros(num, options.score_rank, inputs))
        self.pst_rows = nn.Parameter(new_zeros(num, outputs, 1))
        self.pst_columns = nn.Parameter(new_zeros(num, 1, inputs))
        nn.init.normal_(self.pst_u)
        nn.init.normal_(self.pst_a)
        device = plain.weight.device
        self.register_buffer("pst_kept", torch.ones(num, outputs, inputs, dtype=torch.bool, device=device))
        self.register_buffer("pst_final", torch.zeros((), dtype=torch.bool, device=device))
        self.register_buffer("pst_steps", torch.zeros((), dtype=torch.int64, device=device))
        self._wanted: float | None = None

    @property
    def settled(self) -> bool:
        """Whether the mask has the final sparsity."""
        return bool(self.pst_final)

    def advance(self, progress: float) -> None:
        """Have the next forward pass in training choose anew, every so many steps and once the sparsity is final."""
        self.pst_steps += 1
        wanted = sparsity_at(self.options, progress)
        if int(self.pst_steps) % self.options.every == 0 or (wanted == self.options.sparsity and not self.settled):
            self._wanted = wanted

    def effective(self) -> Tensor:
        """The moved weights times the mask."""
        moved_KOI = self.weight_KOI + self.options.move * (self.pst_u @ self.pst_v)
        if not self.training:
            return (moved_KOI * self.pst_kept).flatten(0, 1)
        scores_KOI = self._scores(moved_KOI)
        if self._wanted is not None:
            self._choose(scores_KOI.detach(), self._wanted)
        through_KOI = scores_KOI - scores_KOI.detach()  # 0, with the gradient of the scores
        return (moved_KOI * (self.pst_kept + through_KOI)).flatten(0, 1)

    def _scores(self, moved_KOI: Tensor) -> Tensor:
        learned_KOI = self.options.score * (self.pst_a @ self.pst_b)
        return moved_KOI.abs() + learned_KOI + self.options.lines * (self.pst_rows + self.pst_columns)

    def _choose(self, scores_KOI: Tensor, sparsity: float) -> None:
        pruned = round(sparsity * scores_KOI[0].numel())
        self.pst_kept.copy_(torch.stack([largest(scores_OI, pruned) for scores_OI in scores_KOI]))
        self.pst_final.fill_(sparsity == self.options.sparsity)
        self._wanted = None
