"""Adapters: what is trained beside an encoder's frozen weights, and folded into them when done."""

from terrazzo.tasks.adapters.base import (
    AdaptedLinear,
    adapted_layers,
    adapter_parameters,
    merge_adapters,
    zero_shares,
)
from terrazzo.tasks.adapters.choice import AdapterConfig, add_adapters
from terrazzo.tasks.adapters.dsee import DseeConfig
from terrazzo.tasks.adapters.lora import LoraConfig
from terrazzo.tasks.adapters.pace import PACE_NAME, PacedSupervised
from terrazzo.tasks.adapters.pst import PstConfig

__all__ = [
    "PACE_NAME",
    "AdaptedLinear",
    "AdapterConfig",
    "DseeConfig",
    "LoraConfig",
    "PacedSupervised",
    "PstConfig",
    "adapted_layers",
    "adapter_parameters",
    "add_adapters",
    "merge_adapters",
    "zero_shares",
]
