"""DSEE: a low-rank and a sparse update of frozen queries and values, and pruned weights under them.

Shapes: P updated matrices of a fused layer's K, I inputs, O outputs of each, R rank, N entries of the sparse update.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from terrazzo.config import config
from terrazzo.errors import InputError
from terrazzo.tasks.adapters.base import AdaptedLinear, largest

#: Queries and values among the matrices of `attention.qkv`.
_UPDATED = (0, 2)


@config
class DseeConfig:
    """Updates alpha / rank (B A + S) of queries and values, and the smallest weights of every matrix pruned.

    Args:
        rank: of B A; alpha: its scale, times rank.
        entries: of S in each matrix, at fixed places: those of the largest entries in the sparse part of the weights.
        prune: share of each matrix that is pruned, by |W + update|; 0 prunes nothing.
        prune_at: share of the run after which that happens; the rest lets the updates recover.
        masked: "sum" zeroes weights and update together, so that the merged matrices are sparse; "weight" zeroes the
            weights alone, as the paper does, whose queries and values stay dense once they are merged.

    Reference: DSEE (arXiv 2111.00160), section 3. It ranks the other matrices together; here each has the share.
    """

    paced: ClassVar[bool] = True
    rate: ClassVar[float] = 10.0
    passes: ClassVar[int] = 3
    layers: ClassVar[tuple[str, ...]] = ("attention.qkv", "attention.out", "mlp.up", "mlp.down")

    kind: Literal["dsee"] = "dsee"
    rank: int = 16
    alpha: float = 32.0
    entries: int = 128
    prune: float = 0.2
    prune_at: float = 0.5
    masked: Literal["sum", "weight"] = "sum"

    def __post_init__(self) -> None:
        for name in ("rank", "entries"):
            if getattr(self, name) < 1:
                raise InputError(f"dsee.{name} must be at least 1, got {getattr(self, name)}")
        if not self.alpha > 0:
            raise InputError(f"dsee.alpha must be positive, got {self.alpha}")
        if not 0 <= self.prune < 1:
            raise InputError(f"dsee.prune is a share of each matrix in [0, 1), got {self.prune}")
        if not 0 < self.prune_at < 1:
            raise InputError(f"dsee.prune_at is a share of the run between 0 and 1, got {self.prune_at}")

    def build(self, name: str, plain: nn.Linear) -> DseeLinear:
        """The adapted layer in the place of a plain one; queries and values alone have updates."""
        each = plain.weight.numel() // (3 if name == "attention.qkv" else 1)
        if name == "attention.qkv" and self.entries > each:
            raise InputError(f"dsee.entries {self.entries}: the model's matrices have {each}; take fewer")
        return DseeLinear(plain, self, _UPDATED if name == "attention.qkv" else ())


def sparse_places(weight_OI: Tensor, entries: int) -> Tensor:
    """int64 `(entries,)`, ascending: flat places of the largest entries of S, in a split W = U V + S.

    The rank of U V grows in rounds, each by the directions that hold most of what neither part explains; S is what is
    left of W at as many places as are to be chosen, the largest. Directions are drawn with a fixed seed, so that
    places depend on W alone.

    Reference: GreBsmo (Zhou and Tao, AISTATS 2013), algorithm 1, as DSEE (arXiv 2111.00160), section 3.2, uses it; but
    S is cut by number, as in GoDec (Zhou and Tao, ICML 2011), not by a threshold, which the scale of W would decide.
    """
    weight_OI = weight_OI.detach().float()
    draw = torch.Generator().manual_seed(0)
    rounds = 16
    step = max(1, round(0.65 * min(weight_OI.shape) / rounds))

    def directions(of_OI: Tensor) -> Tensor:
        drawn = torch.randn(step, len(of_OI), generator=draw).to(of_OI.device)
        return torch.linalg.qr((drawn @ of_OI).T).Q.T

    sparse_OI, right_RI = torch.zeros_like(weight_OI), directions(weight_OI)
    places = torch.empty(0, dtype=torch.int64)
    for turn in range(rounds):
        for _ in range(2):
            left_OR = torch.linalg.qr((weight_OI - sparse_OI) @ right_RI.T).Q
            right_RI = left_OR.T @ (weight_OI - sparse_OI)
            residual_OI = weight_OI - left_OR @ right_RI
            places = residual_OI.abs().flatten().topk(entries).indices
            values = residual_OI.flatten()[places]
            sparse_OI = torch.zeros_like(weight_OI).flatten().scatter(0, places, values).view_as(weight_OI)
        if turn + 1 < rounds:
            right_RI = torch.cat((right_RI, directions(residual_OI - sparse_OI)))
    return places.sort().values


class DseeLinear(AdaptedLinear):
    """Frozen weights under a mask, and low-rank and sparse updates of some of a fused layer's matrices, zero at first.

    Args:
        updated: numbers of the matrices with updates; with none, the layer has nothing to train and is only pruned.
    """

    dsee_places: Tensor
    dsee_kept: Tensor
    dsee_pruned: Tensor

    def __init__(self, plain: nn.Linear, options: DseeConfig, updated: tuple[int, ...]) -> None:
        super().__init__(plain)
        self.options, self.updated = options, updated
        num, outputs, inputs = self.weight_KOI.shape
        parts, device = len(updated), plain.weight.device
        if updated:
            self.dsee_down = nn.Parameter(plain.weight.new_empty(parts, options.rank, inputs))
            self.dsee_up = nn.Parameter(plain.weight.new_zeros(parts, outputs, options.rank))
            self.dsee_values = nn.Parameter(plain.weight.new_zeros(parts, options.entries))
            nn.init.normal_(self.dsee_down, std=inputs**-0.5)
            places = torch.zeros(parts, options.entries, dtype=torch.int64, device=device)
            self.register_buffer("dsee_places", places)
            self.trained = ("dsee_down", "dsee_up", "dsee_values")
        self.register_buffer("dsee_kept", torch.ones(num, outputs, inputs, dtype=torch.bool, device=device))
        self.register_buffer("dsee_pruned", torch.zeros((), dtype=torch.bool, device=device))
        self._due = False

    @property
    def settled(self) -> bool:
        """Whether the weights are pruned, where they are to be."""
        return not self.options.prune or bool(self.dsee_pruned)

    def begin(self) -> None:
        """Choose the places of the sparse updates."""
        for part, matrix in enumerate(self.updated):
            self.dsee_places[part] = sparse_places(self.weight_KOI[matrix], self.options.entries)

    def advance(self, progress: float) -> None:
        """Have the next forward pass in training prune, once."""
        self._due = progress >= self.options.prune_at and not self.settled

    def update(self) -> Tensor:
        """alpha / rank (B A + S), `(K, O, I)`; zero for matrices without update."""
        update_KOI = torch.zeros_like(self.weight_KOI)
        if not self.updated:
            return update_KOI
        low_POI = self.dsee_up @ self.dsee_down
        sparse_POI = torch.zeros_like(low_POI).flatten(1).scatter(1, self.dsee_places, self.dsee_values)
        update_POI = self.options.alpha / self.options.rank * (low_POI + sparse_POI.view_as(low_POI))
        return update_KOI.index_copy(0, torch.tensor(self.updated, device=low_POI.device), update_POI)

    def effective(self) -> Tensor:
        """Weights and update, pruned once it is time."""
        update_KOI = self.update()
        if self.training and self._due:
            self._prune((self.weight_KOI + update_KOI).detach().abs())
        if self.options.masked == "sum":
            return ((self.weight_KOI + update_KOI) * self.dsee_kept).flatten(0, 1)
        return (self.weight_KOI * self.dsee_kept + update_KOI).flatten(0, 1)

    def _prune(self, scores_KOI: Tensor) -> None:
        pruned = round(self.options.prune * scores_KOI[0].numel())
        self.dsee_kept.copy_(torch.stack([largest(scores_OI, pruned) for scores_OI in scores_KOI]))
        self.dsee_pruned.fill_(True)
        self._due = False
