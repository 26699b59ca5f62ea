"""What cutting each site does to a model's answers: one probe a site, by which the sites' errors are weighed.

The error of a layer's output, by which ZipLM orders plans, says little about the answers where a few directions make up
most of that output: a quarter of the units of MiniLM's first layer keeps more of its output than a quarter of the last
one's, and moves the answers much more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from terrazzo.compression.database import Database, Level
from terrazzo.compression.distill import answers_loss
from terrazzo.compression.shrink import stitch_unchecked
from terrazzo.nn import Encoder
from terrazzo.packed import Packed
from terrazzo.tasks.model import TaskModel

#: The share of a site's structures that its probe keeps.
_KEPT = 0.25
#: Of what the site moves that moves most, the least that any is taken to, so that nothing is free to cut.
_LEAST = 1e-6


def weighed_errors(
    model: TaskModel,
    database: Database,
    batches: Sequence[Packed],
    with_encoder: Callable[[Encoder], TaskModel],
) -> dict[str, list[tuple[int, float]]]:
    """The sizes of every site and what each costs: its squared relative error, scaled so that the probe's is how far
    the answers move when that site alone is cut.

    Args:
        model: whose encoder the database is of; with_encoder: puts its head onto another encoder.
        batches: rows, with or without answers.
    """
    with torch.inference_mode():
        before = [model(batch).double() for batch in batches]
        moved = {site: _moved(model, with_encoder, database, site, batches, before) for site in database.levels}
    least = _LEAST * max(moved.values()) or 1.0
    return {site: _costs(levels, max(moved[site], least)) for site, levels in database.levels.items()}


def _moved(
    model: TaskModel,
    with_encoder: Callable[[Encoder], TaskModel],
    database: Database,
    site: str,
    batches: Sequence[Packed],
    before: Sequence[torch.Tensor],
) -> float:
    """How far the answers of all rows move with a site at its probe; in float64, because in fp32 the distance of
    answers that are nearly the same comes out below 0."""
    cut = with_encoder(stitch_unchecked(model.encoder, database, {site: _probe(database.levels[site]).size}))
    pairs = zip(batches, before, strict=True)
    return sum(float(answers_loss(model.task, cut(batch).double(), given, batch, 1.0)) for batch, given in pairs)


def _probe(levels: Sequence[Level]) -> Level:
    """The level that is nearest to a quarter of all and changes something, where there is one."""
    full = max(level.size for level in levels)
    changed = [level for level in levels if level.relative_error > 0] or list(levels)
    return min(changed, key=lambda level: abs(level.size - _KEPT * full))


def _costs(levels: Sequence[Level], moved: float) -> list[tuple[int, float]]:
    probed = _probe(levels).relative_error
    scale = moved / probed**2 if probed > 0 else 0.0
    return [(level.size, scale * level.relative_error**2) for level in levels]
