"""Smaller and faster models: what to cut, at which price, and the proof."""

from terrazzo.compress.binary import binarise, pack_binary
from terrazzo.compress.database import Database, Level, encoder_fingerprint
from terrazzo.compress.distill import DistillConfig
from terrazzo.compress.distill_workload import DistillWorkload
from terrazzo.compress.goal import Goal
from terrazzo.compress.gradients import LossGradients, TaskGradients, examples_of
from terrazzo.compress.gradual import MagnitudePruner, ObertPruner, PruningWorkload, SparsitySchedule
from terrazzo.compress.latency import Conditions, LatencyTable
from terrazzo.compress.latency_measure import compare, latency_table
from terrazzo.compress.layerwise import prune_layerwise
from terrazzo.compress.masks import Masks, read_masks, single_matrices
from terrazzo.compress.outliers import Outliers, measure_outliers
from terrazzo.compress.plan import Plan, read_plan, write_plan
from terrazzo.compress.ratios import first_order, sparsities, zeroth_order
from terrazzo.compress.search import SearchOptions, level_errors, search_plan
from terrazzo.compress.shrink import masked, planned_config, stitch
from terrazzo.compress.sites import Site, find_site, ladder, matrices
from terrazzo.compress.solver import Unreachable, choose_levels
from terrazzo.compress.sparsity_curve import SparsityCurve, sparsity_curve
from terrazzo.compress.statistics import Statistics, Wanted, collect, output_projections
from terrazzo.compress.timing import Timing, TooNoisy
from terrazzo.compress.unstructured import NM, ObertConfig, Pruned, magnitude, obert
from terrazzo.compress.w8a8 import W8A8, pseudo_perplexities, simulate_w8a8
from terrazzo.compress.ziplm import default_levels

__all__ = [
    "NM",
    "W8A8",
    "Conditions",
    "Database",
    "DistillConfig",
    "DistillWorkload",
    "Goal",
    "LatencyTable",
    "Level",
    "LossGradients",
    "MagnitudePruner",
    "Masks",
    "ObertConfig",
    "ObertPruner",
    "Outliers",
    "Plan",
    "Pruned",
    "PruningWorkload",
    "SearchOptions",
    "Site",
    "SparsityCurve",
    "SparsitySchedule",
    "Statistics",
    "TaskGradients",
    "Timing",
    "TooNoisy",
    "Unreachable",
    "Wanted",
    "binarise",
    "choose_levels",
    "collect",
    "compare",
    "default_levels",
    "encoder_fingerprint",
    "examples_of",
    "find_site",
    "first_order",
    "ladder",
    "latency_table",
    "level_errors",
    "magnitude",
    "masked",
    "matrices",
    "measure_outliers",
    "obert",
    "output_projections",
    "pack_binary",
    "planned_config",
    "prune_layerwise",
    "pseudo_perplexities",
    "read_masks",
    "read_plan",
    "search_plan",
    "simulate_w8a8",
    "single_matrices",
    "sparsities",
    "sparsity_curve",
    "stitch",
    "write_plan",
    "zeroth_order",
]
