"""A latency table's parts fitted to encoders that were timed as a whole.

Parts are timed in few layers. Among many they find less of what they need in the caches, and every part that is there
at all costs a little beside its products; neither shows in few layers, both do in a handful of whole encoders.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from terrazzo.compression.latency import LatencyTable
from terrazzo.compression.sites import Kind, sites
from terrazzo.nn import EncoderConfig

#: Encoders beside the dense one that the parts are fitted to.
WHOLE = 8
#: Shares of all heads and units that they keep, from first to last.
_LEAST, _MOST = 0.08, 0.8
#: Factors are no less than this, whatever the noise.
_LEAST_FACTOR = 0.25
#: How far a time is off, as a share; how far factors are from 1; what presence costs, as a share of a part's time.
_NOISE, _FACTORS, _PRESENCE = 0.03, 0.2, 0.1


def whole_encoders(shape: EncoderConfig, count: int = WHOLE) -> list[EncoderConfig]:
    """Uneven encoders from slim to nearly whole, of drawn sizes; units in steps of 32 where there are many."""
    step = 32 if shape.mlp_width >= 512 else 1
    return [_drawn(shape, share, step, seed) for seed, share in enumerate(np.geomspace(_LEAST, _MOST, count))]


def _drawn(shape: EncoderConfig, share: float, step: int, seed: int) -> EncoderConfig:
    draw = random.Random(seed)

    def some(most: int) -> int:
        return round(most * min(1.0, 2 * share * draw.random()))

    heads = tuple(tuple(range(some(shape.num_heads))) for _ in range(shape.depth))
    widths = tuple(step * some(shape.mlp_width // step) for _ in range(shape.depth))
    return shape.replace(kept_heads=heads, mlp_widths=widths)


def fitted(table: LatencyTable, configs: Sequence[EncoderConfig], measured_ms: Sequence[float]) -> LatencyTable:
    """The table with a factor for each kind and a time for being there, by least squares of relative errors.

    Both are drawn to 1 and 0 as far as times are noisy, so that few encoders suffice. Being there costs nothing if it
    would cost less.
    """
    parts_C3 = np.array([_parts(table, config) for config in configs])
    ms_C = np.array(measured_ms)
    part_ms = parts_C3[:, :2].sum() / max(1.0, parts_C3[:, 2].sum())
    expected, spread = np.array([1.0, 1.0, 0.0]), np.array([_FACTORS, _FACTORS, _PRESENCE * max(part_ms, 1e-9)])
    rows_R3 = np.concatenate([parts_C3 / ms_C[:, None], _NOISE * np.diag(1 / spread)])
    wanted_R = np.concatenate([(ms_C - table.remainder_ms) / ms_C, _NOISE * expected / spread])
    heads, units, present_ms = np.linalg.lstsq(rows_R3, wanted_R, rcond=None)[0]
    if present_ms < 0:
        present_ms, (heads, units) = 0.0, np.linalg.lstsq(rows_R3[:, :2], wanted_R, rcond=None)[0]
    factors: dict[Kind, float] = {"heads": max(_LEAST_FACTOR, float(heads)), "units": max(_LEAST_FACTOR, float(units))}
    curves = tuple(
        replace(curve, ms=(0.0, *(factors[curve.kind] * one + float(present_ms) for one in curve.ms[1:])))
        for curve in table.curves
    )
    return replace(table, curves=curves, factors=factors, present_ms=float(present_ms))


def _parts(table: LatencyTable, config: EncoderConfig) -> tuple[float, float, int]:
    """Milliseconds of an encoder's heads and of its units by the table, and the sites that are there."""
    spent: dict[Kind, float] = {"heads": 0.0, "units": 0.0}
    for site in sites(config):
        spent[site.kind] += table.price(site, site.size(config))
    return spent["heads"], spent["units"], sum(site.size(config) > 0 for site in sites(config))
