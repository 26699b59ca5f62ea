"""What ZipLM is compared with: structures removed without any refitting.

Shapes: D rows of an output projection, F its columns, G structures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from terrazzo.compression.database import Before, Database, Level, check_levels, encoder_fingerprint
from terrazzo.compression.sites import columns_of, find_site
from terrazzo.compression.statistics import Moments
from terrazzo.compression.ziplm import default_levels
from terrazzo.nn import Encoder


def magnitude(
    encoder: Encoder, grams: Mapping[str, Moments], levels: Mapping[str, Sequence[int]] | None = None
) -> Database:
    """Levels that keep the structures whose columns of the output projection have the largest norms, as they are.

    Args:
        grams: for the errors alone; levels: as in `ziplm.database`.

    Raises:
        InputError: a site or a size that the encoder has not, or moments of another encoder.
    """
    asked = check_levels(default_levels(encoder.config) if levels is None else levels, encoder.config)
    found: dict[str, list[Level]] = {}
    for site, sizes in asked.items():
        before = Before(encoder, site, grams)
        norms_G = torch.linalg.vector_norm(before.weight_DF, dim=0).square().view(-1, before.group).sum(1)
        order = norms_G.argsort(descending=True, stable=True)
        found[site.name] = [_as_it_was(before, order[:size].sort().values.tolist()) for size in sizes]
    return Database(encoder.config, encoder_fingerprint(encoder), found, {"method": "magnitude"})


def without_update(encoder: Encoder, grams: Mapping[str, Moments], chosen: Database) -> Database:
    """The structures that another database keeps, with their columns as they were: what its updates are worth.

    Raises:
        InputError: moments or a database of another encoder.
    """
    chosen.check(encoder)
    found: dict[str, list[Level]] = {}
    for name, levels in chosen.levels.items():
        before = Before(encoder, find_site(name, encoder.config), grams)
        found[name] = [_as_it_was(before, level.kept) for level in levels]
    made = {**chosen.made, "method": f"{chosen.made['method']} without update", "centre": False}
    return Database(encoder.config, chosen.fingerprint, found, made)


def _as_it_was(before: Before, kept: Sequence[int]) -> Level:
    groups = torch.tensor(kept, dtype=torch.int64, device=before.weight_DF.device)
    return before.level(groups, before.weight_DF[:, columns_of(groups, before.group)])
