"""Smaller and faster models: what to cut, at which price, and the proof."""

from terrazzo.compress.database import Database, Level, encoder_fingerprint
from terrazzo.compress.latency import Conditions, LatencyTable
from terrazzo.compress.latency_measure import compare, latency_table
from terrazzo.compress.plan import Plan, read_plan, write_plan
from terrazzo.compress.search import SearchOptions, level_errors, search_plan
from terrazzo.compress.shrink import masked, planned_config, stitch
from terrazzo.compress.sites import Site, find_site, ladder, matrices
from terrazzo.compress.solver import Unreachable, choose_levels
from terrazzo.compress.statistics import Statistics, Wanted, collect, output_projections
from terrazzo.compress.timing import Timing, TooNoisy
from terrazzo.compress.ziplm import default_levels

__all__ = [
    "Conditions",
    "Database",
    "LatencyTable",
    "Level",
    "Plan",
    "SearchOptions",
    "Site",
    "Statistics",
    "Timing",
    "TooNoisy",
    "Unreachable",
    "Wanted",
    "choose_levels",
    "collect",
    "compare",
    "default_levels",
    "encoder_fingerprint",
    "find_site",
    "ladder",
    "latency_table",
    "level_errors",
    "masked",
    "matrices",
    "output_projections",
    "planned_config",
    "read_plan",
    "search_plan",
    "stitch",
    "write_plan",
]
