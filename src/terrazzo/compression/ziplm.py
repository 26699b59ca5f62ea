"""ZipLM: heads and units removed one by one, the output projection refitted after each.

Shapes: D rows of an output projection, F its columns, K columns that stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from terrazzo.compression.curvature import Gram, obs_remove
from terrazzo.compression.database import Before, Database, Level, check_levels, encoder_fingerprint, squared_error
from terrazzo.compression.sites import columns_of, ladder, sites
from terrazzo.compression.statistics import Moments
from terrazzo.nn import Encoder, EncoderConfig

#: How far the sum of prices may be from the error that they predict before a site is done again in float64.
_TOLERANCE = 1e-4


def default_levels(config: EncoderConfig, shrink: float = 0.9) -> dict[str, tuple[int, ...]]:
    """Every number of heads, and inner widths that shrink by a factor down to none, for every site by its name."""
    return {
        site.name: tuple(range(site.size(config), -1, -1))
        if site.kind == "heads"
        else ladder(site.size(config), shrink)
        for site in sites(config)
    }


def database(
    encoder: Encoder,
    grams: Mapping[str, Moments],
    levels: Mapping[str, Sequence[int]] | None = None,
    *,
    damping: float = 0.01,
    centre: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Database:
    """Every level of every site, each site in one pass from all its structures to the fewest asked for.

    Each is fitted to the inputs that it has in the uncut encoder, so that levels of different sites can be combined.

    Args:
        grams: moments of the inputs of the output projections: `collect(encoder, batches,
            output_projections(encoder.config)).grams`.
        levels: the sizes to store by the name of the site; None means `default_levels`. The full size is always stored.
        damping: of X X', as a share of the mean of its diagonal; the paper's descendants use 0.01.
        centre: let the output bias take over what removed structures gave on average. The paper leaves it as it is.
        dtype: what the greedy pass computes in; a site for which float32 does not suffice is done again in float64.

    Raises:
        InputError: a site or a size that the encoder has not, moments of another encoder, too little damping.

    Reference: ZipLM (arXiv 2302.04089), algorithm 1.
    """
    asked = check_levels(default_levels(encoder.config) if levels is None else levels, encoder.config)
    found: dict[str, list[Level]] = {}
    for site, sizes in asked.items():
        found[site.name] = _levels(Before(encoder, site, grams, centre, dtype), sizes, damping)
    tokens = max((moments.tokens for moments in grams.values()), default=0)
    made = {"method": "ziplm", "damping": damping, "centre": centre, "tokens": tokens}
    return Database(encoder.config, encoder_fingerprint(encoder), found, made)


def prune(
    weight_DF: Tensor, gram_FF: Tensor, sizes: Sequence[int], *, group: int = 1, damping: float = 0.01
) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Remove groups of columns one by one, each time the cheapest, and refit what stays, in the weight's precision.

    Args:
        weight_DF: not changed; gram_FF: X X' of its inputs; sizes: how many groups to stop at, in any order.

    Yields:
        for each size, largest first: the groups that stay, ascending; their columns `(D, K)`; and how much the squared
        error with damping, ||(W' - W) X||^2 + damping ||W' - W||^2, has grown.

    Raises:
        torch.linalg.LinAlgError: the precision does not suffice.

    Reference: ZipLM (arXiv 2302.04089), algorithm 1.
    """
    kept = torch.arange(weight_DF.shape[1] // group, device=weight_DF.device)
    stops = sorted(set(sizes), reverse=True)
    if stops and stops[0] == len(kept):
        yield kept, weight_DF, 0.0
        stops = stops[1:]
    if not stops:
        return
    curvature = Gram.of(gram_FF, group, damping, weight_DF.dtype)
    weight_DF = weight_DF.masked_fill(gram_FF.diagonal() == 0, 0)
    loss = 0.0
    for size in stops:
        gone, losses = obs_remove(weight_DF, curvature, len(kept) - size)
        stays = torch.ones_like(kept, dtype=torch.bool)
        stays[gone] = False
        here = stays.nonzero().flatten()
        weight_DF, curvature, kept = weight_DF[:, columns_of(here, group)], curvature.restricted(here), kept[here]
        loss += sum(losses)
        yield kept, weight_DF.clone(), loss


def _levels(before: Before, sizes: Sequence[int], damping: float) -> list[Level]:
    """All levels of a site, in float64 where the precision asked for breaks down or loses count of the error."""
    weight_DF, gram_FF = before.weight_DF, before.gram_FF
    try:
        pruned = list(prune(weight_DF, gram_FF, sizes, group=before.group, damping=damping))
        sound = weight_DF.dtype == torch.float64 or _adds_up(before, pruned, damping)
    except torch.linalg.LinAlgError:
        if weight_DF.dtype == torch.float64:
            raise
        sound = False
    if not sound:
        pruned = list(prune(weight_DF.double(), gram_FF, sizes, group=before.group, damping=damping))
    return [before.level(kept, weight_DK.to(weight_DF.dtype)) for kept, weight_DK, _ in pruned]


def _adds_up(before: Before, pruned: list[tuple[Tensor, Tensor, float]], damping: float) -> bool:
    """Whether the prices sum to the error of the smallest level with weights, as they do without rounding."""
    *_, (kept, weight_DK, loss) = (level for level in pruned if len(level[0]) or level is pruned[0])
    change_DF, diagonal_F = before.change(kept, weight_DK), before.gram_FF.diagonal()
    change_DF[:, diagonal_F == 0] = 0
    added = damping * float(diagonal_F.mean()) if len(diagonal_F) else 0.0
    error = squared_error(change_DF, before.gram_FF.to(change_DF.dtype)) + added * float(change_DF.square().sum())
    return abs(loss - error) <= _TOLERANCE * error
