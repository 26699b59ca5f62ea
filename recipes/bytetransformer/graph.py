"""The same weights as graphs in OpenVINO: padding in attention alone, and padding throughout.

Shapes: T packed tokens, D width.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recipes.bytetransformer.mixes import Mix
from recipes.bytetransformer.speed import Arm
from terrazzo.nn import Encoder
from terrazzo.packed import Packed
from terrazzo.runtime import OpenVinoRuntime, PaddedEncoder, to_openvino
from terrazzo.runtime.openvino import import_openvino
from terrazzo.runtime.padded import padded_inputs
from terrazzo.tasks.batches import by_shares


def openvino_arms(encoder: Encoder) -> dict[str, Arm]:
    """The exported graph in batches of similar length, as `encode` runs it, and one padded to the longest allowed."""
    runtime = OpenVinoRuntime(to_openvino(encoder), encoder.config, streams=1, threads=1)
    padded = OpenVinoRuntime(padded_graph(encoder), encoder.config, streams=1, threads=1)
    return {"openvino": lambda mix: by_length(runtime, mix), "openvino_padded": lambda mix: to_longest(padded, mix)}


def padded_graph(encoder: Encoder) -> Any:
    """The graph in which every operation runs on padding too; its inputs are those of `padded_inputs`."""
    sample = padded_inputs(Packed.from_sequences([[1, 2, 3], [1, 2]]), encoder.config)
    inputs = {name: torch.from_numpy(values) for name, values in sample.items()}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, about shapes that become parts of the graph
        return import_openvino().convert_model(PaddedEncoder(encoder).eval(), example_input=inputs)


def by_length(runtime: OpenVinoRuntime, mix: Mix) -> Tensor:
    """Hidden states `(T, D)`, batch by batch."""
    documents = mix.packed.tokens_T.split(list(mix.packed.lengths))
    starts = np.cumsum([0, *mix.packed.lengths])
    hidden_TD = torch.empty(mix.packed.num_tokens, runtime.config.width)
    for rows in by_shares(mix.packed.lengths, runtime.batch_tokens, pads=runtime.pads):
        own = Packed.from_sequences([documents[row].numpy() for row in rows])
        places_T = np.concatenate([np.arange(starts[row], starts[row + 1]) for row in rows])
        hidden_TD[torch.from_numpy(places_T)] = runtime(own)
    return hidden_TD


def to_longest(runtime: OpenVinoRuntime, mix: Mix) -> Tensor:
    """Hidden states `(T, D)` of one batch in which every document has `mix.size` places."""
    inputs = {
        "ids": mix.ids_BS.numpy(),
        "lengths": mix.lengths_B.numpy(),
        "types": np.zeros_like(mix.ids_BS.numpy()),
        "rows": np.flatnonzero(mix.mask_BS.numpy()),
    }
    (hidden_TD,) = runtime.compiled(inputs).values()
    return torch.from_numpy(hidden_TD)
