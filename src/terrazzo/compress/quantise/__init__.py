"""Matrices of few bits an entry: how they are rounded, which gets how many, and the folder that holds them packed."""

from terrazzo.compress.quantise.bits import choose_bits
from terrazzo.compress.quantise.plan import BitPlan, mean_bits, packed_bytes, uniform_plan, weights_of
from terrazzo.compress.quantise.quantise import (
    Quantised,
    QuantiseOptions,
    quantise,
    requantise,
    save_packed,
    write_packed,
)
from terrazzo.compress.quantise.spectrum import omega, sensitivity, top_eigenvalue
from terrazzo.compress.quantise.training import RoundedWorkload, Rounding

__all__ = [
    "BitPlan",
    "Quantised",
    "QuantiseOptions",
    "RoundedWorkload",
    "Rounding",
    "choose_bits",
    "mean_bits",
    "omega",
    "packed_bytes",
    "quantise",
    "requantise",
    "save_packed",
    "sensitivity",
    "top_eigenvalue",
    "uniform_plan",
    "weights_of",
    "write_packed",
]
