"""Single weights, small groups and N:M patterns: which go by magnitude or by oBERT's price, and what the rest then is.

All functions take single matrices by name, as `masks.single_matrices` gives them. Shapes: O rows, I columns of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from terrazzo.compression.fisher import BlockFisher, FisherOptions, Method, block_fishers
from terrazzo.compression.gradients import GradientStream
from terrazzo.compression.masks import sparsity
from terrazzo.config import config
from terrazzo.errors import InputError
from terrazzo.optim.schedules import mix


@dataclass(frozen=True)
class NM:
    """A pattern: `keep` of every `of` neighbouring entries of a row stay; `NM(2, 4)` is what GPUs multiply fast."""

    keep: int
    of: int

    def __post_init__(self) -> None:
        if not 0 < self.keep < self.of:
            raise InputError(f"pattern {self.keep}:{self.of}: the first number must lie between 0 and the second")


#: How sparse: a share of all entries, a share of each matrix's own, or a pattern.
Target = float | Mapping[str, float] | NM


def keep_best(
    scores: Mapping[str, Tensor], target: Target, group: int = 1, keep: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """True for the entries with the highest scores, as many as `target` leaves; what `keep` lacks goes first, and stays
    away where it is more than that.

    A share of all entries sets one threshold for all matrices. The number removed is the nearest whole number of
    groups; a row's last group may be shorter. A group that `keep` lacks in part is one with the others, by its score.

    Args:
        group: neighbours in a row that go together and have one score.

    Raises:
        InputError: a share outside 0 to 1, a matrix without one, or rows that a pattern does not divide.
    """
    if keep is not None:
        scores = {name: score.masked_fill(~_alive(keep[name], group), -torch.inf) for name, score in scores.items()}
        return {name: mask & keep[name] for name, mask in keep_best(scores, target, group).items()}
    if isinstance(target, NM):
        return {name: pattern_mask(score, target, name) for name, score in scores.items()}
    if isinstance(target, Mapping):
        missing = [name for name in scores if name not in target]
        if missing:
            raise InputError(f"sparsity: there is none for {missing[0]}")
        return {name: _keep_share({name: score}, target[name], group)[name] for name, score in scores.items()}
    return _keep_share(scores, target, group)


def _alive(keep_OI: Tensor, group: int) -> Tensor:
    """Whether anything of an entry's group is kept."""
    return keep_OI if group == 1 else _grouped(keep_OI.float(), group) > 0


def pattern_mask(score_OI: Tensor, pattern: NM, name: str = "matrix") -> Tensor:
    """True for the `pattern.keep` best of every `pattern.of` neighbours of a row.

    Raises:
        InputError: the rows are no multiple of `pattern.of` long.
    """
    if score_OI.shape[1] % pattern.of:
        raise InputError(f"{name}: pattern {pattern.keep}:{pattern.of} does not divide {score_OI.shape[1]} columns")
    groups = score_OI.unflatten(1, (-1, pattern.of))
    best = groups.topk(pattern.keep, dim=2).indices
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(2, best, True).flatten(1)


def _keep_share(scores: Mapping[str, Tensor], share: float, group: int) -> dict[str, Tensor]:
    if not 0 <= share <= 1:
        raise InputError(f"sparsity {share}: a share of the weights, 0 to 1")
    heads = {name: score[:, ::group] for name, score in scores.items()}
    flat = torch.cat([score.flatten() for score in heads.values()])
    # A rounded product alone would let float noise decide at .5.
    lowest = flat.topk(round(share * len(flat) + 1e-9), largest=False, sorted=False).indices
    kept = torch.ones_like(flat, dtype=torch.bool).index_fill_(0, lowest, False)
    parts = kept.split([score.numel() for score in heads.values()])
    whole = {}
    for (name, head), part in zip(heads.items(), parts, strict=True):
        whole[name] = part.view(head.shape).repeat_interleave(group, dim=1)[:, : scores[name].shape[1]]
    return whole


def magnitude_scores(weights: Mapping[str, Tensor], group: int = 1) -> dict[str, Tensor]:
    """The square of each entry; of a group, their mean, so that a row's shorter last group is not favoured."""
    return {name: _grouped(weight.square(), group) for name, weight in weights.items()}


def _grouped(values_OI: Tensor, group: int) -> Tensor:
    if group == 1:
        return values_OI
    columns = values_OI.shape[1]
    padded = torch.nn.functional.pad(values_OI, (0, -columns % group))
    sizes = torch.nn.functional.pad(values_OI.new_ones(1, columns), (0, -columns % group)).unflatten(1, (-1, group))
    means = padded.unflatten(1, (-1, group)).sum(2) / sizes.sum(2)
    return means.repeat_interleave(group, dim=1)[:, :columns]


def magnitude(
    weights: Mapping[str, Tensor], target: Target, group: int = 1, keep: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """What stays where the smallest weights go; the weights themselves are left as they are.

    Reference: essential sparsity (arXiv 2306.03805): global and one-shot.
    """
    return keep_best(magnitude_scores(weights, group), target, group, keep)


@config
class ObertConfig:
    """Optimal BERT surgeon: prices from the Fisher matrix, and the rest moved to make up for what goes.

    Args:
        block: most entries of a row that know of each other; memory is 4 * block bytes a weight.
        damp: added to the Fisher's diagonal; large is magnitude pruning, small is unstable.
        group: neighbours that go together, 4 for 4-blocks; `block` must be a multiple.
        recomputations: prunings, each with gradients of its own, that the way from the present sparsity is cut into.
        across_rows: let blocks run over the ends of rows.
        prices: "greedy" prices an entry when all cheaper ones of its block are gone, "single" each alone, as the paper.
        update: "joint" solves for all that goes from a block at once, "none" only removes.
        memory: bytes for Fisher matrices; where that is not enough for all, matrices are done in turns, with their
            gradients computed twice.
        method, buffer: see `FisherOptions`.

    Reference: oBERT (arXiv 2203.07259), section 3; defaults from its appendix on hyperparameters, but for per-example
    gradients, blocks within rows, and greedy prices.
    """

    block: int = 50
    damp: float = 1e-7
    group: int = 1
    recomputations: int = 1
    across_rows: bool = False
    prices: Literal["greedy", "single"] = "greedy"
    update: Literal["joint", "none"] = "joint"
    memory: float = 2.6e9
    method: Method = "auto"
    buffer: int = 8

    def __post_init__(self) -> None:
        for name in ("block", "damp", "group", "recomputations", "memory", "buffer"):
            if not getattr(self, name) > 0:
                raise InputError(f"obert.{name} must be positive, got {getattr(self, name)}")
        if self.block % self.group:
            raise InputError(f"obert.block {self.block} must be a multiple of obert.group {self.group}")

    @property
    def fisher(self) -> FisherOptions:
        """How the Fisher matrices are made."""
        return FisherOptions(self.block, self.damp, self.group, self.across_rows, self.method, self.buffer)


@dataclass(frozen=True)
class Pruned:
    """What a pruning left.

    Args:
        keep: True for the entries that stay, by single matrix.
        weights: the matrices after it.
        cost: what the quadratic model says that it adds to the loss.
    """

    keep: dict[str, Tensor]
    weights: dict[str, Tensor] = field(repr=False)
    cost: float = 0.0


@torch.no_grad()
def obert(
    weights: Mapping[str, Tensor],
    gradients: GradientStream,
    target: Target,
    options: ObertConfig | None = None,
    keep: Mapping[str, Tensor] | None = None,
) -> Pruned:
    """Prune to `target` in place; the model should be at a minimum of the loss that the gradients are of.

    Args:
        weights: views of the model's own weights, which the gradients' model must be computed with.
        keep: what an earlier pruning left; the rest stays zero and counts.

    Raises:
        InputError: a target that cannot be, rows of a pattern that does not fit, or a damping that is too small.

    Reference: oBERT (arXiv 2203.07259), section 3.1.
    """
    options = options or ObertConfig()
    masks = {
        name: torch.ones_like(weight, dtype=torch.bool) if keep is None else keep[name]
        for name, weight in weights.items()
    }
    cost = 0.0
    for level in _levels(masks, target, options.recomputations):
        step = _obert_step(weights, gradients, level, options, masks)
        for name, weight in weights.items():
            weight.copy_(step.weights[name])
        masks, cost = step.keep, cost + step.cost
    return Pruned(masks, dict(weights), cost)


def _levels(keep: Mapping[str, Tensor], target: Target, steps: int) -> list[Target]:
    """Targets on the straight way from the present sparsity; a pattern is one step."""
    if isinstance(target, NM):
        return [target]
    shares = [step / steps for step in range(1, steps + 1)]
    if not isinstance(target, Mapping):
        return [mix(sparsity(keep), target, share) for share in shares]
    own = {name: sparsity({name: mask}) for name, mask in keep.items()}
    return [{name: mix(own[name], target[name], share) for name in own} for share in shares]


def _obert_step(
    weights: Mapping[str, Tensor],
    gradients: GradientStream,
    target: Target,
    options: ObertConfig,
    keep: Mapping[str, Tensor],
) -> Pruned:
    """Prices of all matrices, one threshold, then the updates; Fisher matrices that do not fit together are remade."""
    turns = _turns(weights, options)
    fishers: dict[str, BlockFisher] = {}
    scores: dict[str, Tensor] = {}
    for names in turns:
        fishers.clear()
        fishers.update(block_fishers({name: weights[name] for name in names}, gradients, options.fisher, keep))
        for name in names:
            scores[name] = _prices(fishers[name], weights[name], options, keep[name])
    chosen = keep_best(scores, target, options.group, keep)
    if options.update == "none":
        removed = {name: weight.masked_fill(~chosen[name], 0) for name, weight in weights.items()}
        return Pruned(chosen, removed)
    changed: dict[str, Tensor] = {}
    cost = 0.0
    for names in reversed(turns):
        if any(name not in fishers for name in names):
            fishers.clear()
            fishers.update(block_fishers({name: weights[name] for name in names}, gradients, options.fisher, keep))
        for name in names:
            changed[name], added = fishers[name].prune(weights[name], chosen[name])
            cost += added
    return Pruned(chosen, changed, cost)


def _prices(fisher: BlockFisher, weight_OI: Tensor, options: ObertConfig, keep_OI: Tensor) -> Tensor:
    if options.prices == "greedy":
        return fisher.greedy_scores(weight_OI, options.group, keep_OI)
    return fisher.scores(weight_OI, options.group)


def _turns(weights: Mapping[str, Tensor], options: ObertConfig) -> list[list[str]]:
    """Names of matrices whose Fisher matrices fit in memory together, at least one at a time."""
    turns: list[list[str]] = []
    left = 0.0
    for name, weight in weights.items():
        needed = options.fisher.bytes(weight)
        if not turns or needed > left:
            turns.append([])
            left = options.memory
        turns[-1].append(name)
        left -= needed
    return turns
