"""Matrices of few bits an entry: how they are rounded, which gets how many, and the folder that holds them packed."""

from terrazzo.compression.quantise.bits import choose_bits
from terrazzo.compression.quantise.plan import BitPlan, mean_bits, packed_bytes, uniform_plan, weights_of
from terrazzo.compression.quantise.quantise import (
    Quantised,
    QuantiseOptions,
    quantise,
    requantise,
    save_packed,
    write_packed,
)
from terrazzo.compression.quantise.spectrum import omega, sensitivity, top_eigenvalue
from terrazzo.compression.quantise.training import RoundedWorkload, Rounding

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
