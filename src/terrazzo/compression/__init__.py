"""Smaller and faster models: what to cut, at which price, and the proof."""

from terrazzo.compression.binary import binarise, pack_binary
from terrazzo.compression.database import Database, Level, encoder_fingerprint
from terrazzo.compression.delta_files import load_delta, save_delta
from terrazzo.compression.deltas import Base, Delta
from terrazzo.compression.distill import DistillConfig
from terrazzo.compression.distill_workload import DistillWorkload
from terrazzo.compression.family import compress_family
from terrazzo.compression.goal import Goal
from terrazzo.compression.gradients import LossGradients, TaskGradients, examples_of
from terrazzo.compression.gradual import MagnitudePruner, ObertPruner, PruningWorkload, SparsitySchedule
from terrazzo.compression.latency import Conditions, LatencyTable
from terrazzo.compression.latency_measure import compare, latency_table
from terrazzo.compression.layerwise import prune_layerwise
from terrazzo.compression.masks import Masks, read_masks, single_matrices
from terrazzo.compression.outliers import Outliers, measure_outliers
from terrazzo.compression.pipeline import compress
from terrazzo.compression.plan import Plan, read_plan, write_plan
from terrazzo.compression.proof import prove
from terrazzo.compression.ratios import first_order, sparsities, zeroth_order
from terrazzo.compression.search import SearchOptions, level_errors, search_plan
from terrazzo.compression.shrink import masked, planned_config, stitch
from terrazzo.compression.sites import Site, find_site, ladder, matrices
from terrazzo.compression.solver import Unreachable, choose_levels
from terrazzo.compression.sparsity_curve import SparsityCurve, sparsity_curve
from terrazzo.compression.speed import Here, here
from terrazzo.compression.statistics import Statistics, Wanted, collect, output_projections
from terrazzo.compression.timing import Timing, TooNoisy
from terrazzo.compression.unstructured import NM, ObertConfig, Pruned, magnitude, obert
from terrazzo.compression.w8a8 import W8A8, pseudo_perplexities, simulate_w8a8
from terrazzo.compression.ziplm import default_levels

__all__ = [
    "NM",
    "W8A8",
    "Base",
    "Conditions",
    "Database",
    "Delta",
    "DistillConfig",
    "DistillWorkload",
    "Goal",
    "Here",
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
    "compress",
    "compress_family",
    "default_levels",
    "encoder_fingerprint",
    "examples_of",
    "find_site",
    "first_order",
    "here",
    "ladder",
    "latency_table",
    "level_errors",
    "load_delta",
    "magnitude",
    "masked",
    "matrices",
    "measure_outliers",
    "obert",
    "output_projections",
    "pack_binary",
    "planned_config",
    "prove",
    "prune_layerwise",
    "pseudo_perplexities",
    "read_masks",
    "read_plan",
    "save_delta",
    "search_plan",
    "simulate_w8a8",
    "single_matrices",
    "sparsities",
    "sparsity_curve",
    "stitch",
    "write_plan",
    "zeroth_order",
]
