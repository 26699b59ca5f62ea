"""Smaller and faster models: what to cut, at which price, and the proof."""

from terrazzo.compress.database import Database, Level, encoder_fingerprint
from terrazzo.compress.shrink import masked, planned_config, stitch
from terrazzo.compress.sites import Site, find_site, ladder, matrices
from terrazzo.compress.statistics import Statistics, Wanted, collect, output_projections
from terrazzo.compress.ziplm import default_levels

__all__ = [
    "Database",
    "Level",
    "Site",
    "Statistics",
    "Wanted",
    "collect",
    "default_levels",
    "encoder_fingerprint",
    "find_site",
    "ladder",
    "masked",
    "matrices",
    "output_projections",
    "planned_config",
    "stitch",
]
