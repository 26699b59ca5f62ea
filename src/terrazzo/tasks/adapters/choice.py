"""The adapters by kind, and how they come into an encoder."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn

from terrazzo.errors import InputError
from terrazzo.nn import Encoder, EncoderConfig
from terrazzo.tasks.adapters.base import adapted_layers
from terrazzo.tasks.adapters.dsee import DseeConfig
from terrazzo.tasks.adapters.lora import LoraConfig
from terrazzo.tasks.adapters.pst import PstConfig

#: Any adapter, as a config field.
AdapterConfig = Annotated[LoraConfig | PstConfig | DseeConfig, Field(discriminator="kind")]


def add_adapters(encoder: Encoder, options: AdapterConfig, empty: bool = False) -> None:
    """Freeze an encoder and put adapters into it; what it computes stays the same.

    Args:
        empty: leave out what adapters take from the weights, because their values are loaded next.

    Raises:
        InputError: a rank that is no smaller than the matrices are, or more entries than they have.
        ValueError: the encoder has adapters already.
    """
    if adapted_layers(encoder):
        raise ValueError("the encoder has adapters already: merge_adapters first")
    if encoder.config.binary:
        raise InputError(f"adapter {options.kind!r}: it adds real weights to those of a binary model: train it without")
    least = _least_width(encoder.config)
    if options.rank >= least:
        raise InputError(
            f"{options.kind}.rank {options.rank}: the model's matrices have rank {least}; take a smaller one"
        )
    encoder.requires_grad_(False)
    for block in encoder.blocks:
        for name in options.layers:
            plain = block.get_submodule(name)
            assert isinstance(plain, nn.Linear)
            if not plain.weight.numel():
                continue
            layer = options.build(name, plain)
            if not empty:
                layer.begin()
            block.set_submodule(name, layer)


def _least_width(config: EncoderConfig) -> int:
    """Of the model and of the inside of its layers, those that hold nothing aside."""
    layers = range(config.depth)
    heads = (len(config.layer_heads(layer)) * config.head_width for layer in layers)
    return min(filter(None, (config.width, *heads, *map(config.layer_mlp_width, layers))))
