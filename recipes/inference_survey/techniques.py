"""The survey's families, and everything that terrazzo has in them today: one entry of `TECHNIQUES` a row of the table.

A further technique is one more entry: what it is called, its family, and a function that makes it of a `Workplace`.

Shapes: T packed tokens, B documents, S padded length.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from terrazzo.compression import collect, output_projections, stitch
from terrazzo.compression.sites import sites
from terrazzo.compression.ziplm import database
from terrazzo.nn import Encoder, EncoderConfig
from terrazzo.nn.flops import forward_flops
from terrazzo.packed import Packed
from terrazzo.runtime import OnnxRuntime, PaddedEncoder, Precision, Runtime, TorchRuntime, quantise_onnx, to_onnx
from terrazzo.runtime.agreement import Judge
from terrazzo.runtime.building import Builder
from terrazzo.runtime.folder import GRAPHS, RuntimeName
from terrazzo.runtime.machine import Machine, this_machine
from terrazzo.runtime.padded import padded_inputs
from terrazzo.runtime.quantise import Target

Family = Literal[
    "knowledge distillation",
    "pruning",
    "quantization",
    "neural architecture search",
    "lightweight network design",
    "hardware-level optimization",
    "hardware accelerators",
]
#: Families without an entry, and why; one that gets an entry leaves this table.
MISSING: dict[Family, str] = {
    "knowledge distillation": "makes nothing cheaper by itself: a cut model learns back by it in `terrazzo compress`",
    "neural architecture search": "not in terrazzo",
    "lightweight network design": "not for a trained model; a new one takes gated MLPs, ALiBi, rotary positions and "
    "local attention as fields of its config",
    "hardware accelerators": "not in terrazzo: CPUs and CUDA GPUs as they come",
}


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """What techniques are made of.

    Args:
        encoder: the model, fp32.
        weights: its file.
        folder: for graphs.
        setting: documents that set the ranges of int8, each its own batch; judge: measures agreement on others.
    """

    encoder: Encoder
    weights: Path
    folder: Path
    setting: Sequence[Packed]
    judge: Judge


#: Multiply-adds of documents of these lengths that run as one batch.
Macs = Callable[[np.ndarray], float]


@dataclass(frozen=True, kw_only=True)
class Made:
    """A technique at work.

    Args:
        files: what is read to run it.
        macs: as executed, padding included.
    """

    runtime: Runtime
    files: tuple[Path, ...]
    macs: Macs

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)


@dataclass(frozen=True, kw_only=True)
class Technique:
    """A row of the table.

    Args:
        what: in words, with the survey's finer distinction.
        family: None for the baseline.
        ordered: whether texts are sorted by length into batches of the runtime's budget, as `encode` does; False takes
            32 at a time as they come.
        missing: why it cannot be had on a machine, None where it can.
    """

    name: str
    what: str
    family: Family | None
    make: Callable[[Workplace], Made]
    ordered: bool = True
    missing: Callable[[Machine], str | None] = lambda machine: None


class PaddedTorch(TorchRuntime):
    """The usual execution: every document filled up to the longest of its batch, in every layer."""

    pads = True

    @torch.inference_mode()
    def __call__(self, batch: Packed, select_M: Tensor | None = None) -> Tensor:
        inputs = {name: torch.from_numpy(own) for name, own in padded_inputs(batch, self.config, select_M).items()}
        rows_M = inputs.pop("rows")
        hidden: Tensor = PaddedEncoder(self.encoder)(**inputs).flatten(0, 1)
        return hidden[rows_M]


def packed_macs(config: EncoderConfig, lengths: np.ndarray) -> float:
    """Multiply-adds of the real tokens."""
    return forward_flops(config, lengths) / 2


def padded_macs(config: EncoderConfig, lengths: np.ndarray) -> float:
    """Multiply-adds where every document costs what the longest does."""
    return packed_macs(config, np.full_like(lengths, lengths.max()))


def graph_macs(config: EncoderConfig, lengths: np.ndarray) -> float:
    """Products with weights on the real tokens, attention padded to the longest, as exported graphs run it."""
    total = 0
    for layer in range(config.depth):
        heads = len(config.layer_heads(layer)) * config.head_width
        weights = config.width * (4 * heads + (3 if config.gated else 2) * config.layer_mlp_width(layer))
        total += int(lengths.sum()) * weights + 2 * heads * len(lengths) * int(lengths.max()) ** 2
    return float(total)


def baseline(place: Workplace) -> Made:
    """PyTorch with padding."""
    runtime = PaddedTorch(place.encoder, streams=1)
    return Made(runtime=runtime, files=(place.weights,), macs=partial(padded_macs, place.encoder.config))


def packed(place: Workplace, precision: Precision = "fp32") -> Made:
    """PyTorch on the real tokens; bf16 reads the same file and converts it."""
    encoder = place.encoder if precision == "fp32" else copy.deepcopy(place.encoder).to(torch.bfloat16)
    macs = partial(packed_macs, encoder.config)
    return Made(runtime=TorchRuntime(encoder, streams=1), files=(place.weights,), macs=macs)


def graph(place: Workplace, name: RuntimeName, precision: Precision) -> Made:
    """The encoder's graph in a runtime of its own, on one core."""
    folder = place.folder / f"{name}-{precision}"
    builder = Builder(
        encoder=place.encoder,
        precision=precision,
        folder=folder,
        setting=place.setting,
        judge=place.judge,
        target=Target(cosine=0.0, answers=0.0),  # the table shows what int8 costs; `export` would refuse or mend it
        machine=replace(this_machine(), cores=1),
        log=lambda line: None,
    )
    files = tuple(folder / file for file in GRAPHS[name])
    macs = partial(graph_macs, place.encoder.config)
    return Made(runtime=builder.build(name).open(1), files=files, macs=macs)


def onnx_int8(place: Workplace) -> Made:
    """Dynamic int8 of ONNX Runtime, which `export` does not make: a batch shares the range of its activations."""
    machine, config, file = this_machine(), place.encoder.config, place.folder / "int8.onnx"
    to_onnx(place.encoder, file)
    quantise_onnx(file, file, reduce_range=not machine.has_int8)
    runtime = OnnxRuntime.open(file, config, "int8", streams=1, threads=1)
    return Made(runtime=runtime, files=(file,), macs=partial(graph_macs, config))


def halved(place: Workplace, precision: Precision) -> Made:
    """Half of the heads and inner units of every layer, cut at once by ZipLM on the texts that set int8's ranges.

    Nothing is trained; `terrazzo compress` chooses sizes by what they cost in answers and lets a model learn back.
    """
    config = place.encoder.config
    half = {"heads": max(1, config.num_heads // 2), "units": config.mlp_width // 2}
    plan = {site.name: half[site.kind] for site in sites(config)}
    grams = collect(place.encoder, place.setting, output_projections(config)).grams
    levels = database(place.encoder, grams, {name: (size,) for name, size in plan.items()})
    folder = place.folder / "halved"
    folder.mkdir(exist_ok=True)
    return graph(replace(place, encoder=stitch(place.encoder, levels, plan), folder=folder), "openvino", precision)


def families(techniques: Iterable[Technique]) -> list[Family]:
    """The families with an entry, in the survey's order."""
    return list(dict.fromkeys(own.family for own in techniques if own.family is not None))


def no_bf16(machine: Machine) -> str | None:
    """Products in bf16 are emulated where a CPU has none, many times slower than fp32."""
    return None if machine.has_bf16 else "not run: no bf16 products on this CPU"


TECHNIQUES = (
    Technique(name="padded", what="PyTorch fp32, padded: the baseline", family=None, make=baseline, ordered=False),
    Technique(
        name="packed",
        what="padding-free batches, PyTorch fp32",
        family="hardware-level optimization",
        make=packed,
        ordered=False,
    ),
    Technique(
        name="openvino",
        what="graph compiler, fused operators: OpenVINO fp32",
        family="hardware-level optimization",
        make=partial(graph, name="openvino", precision="fp32"),
    ),
    Technique(
        name="onnx",
        what="graph compiler, fused operators: ONNX Runtime fp32",
        family="hardware-level optimization",
        make=partial(graph, name="onnx", precision="fp32"),
    ),
    Technique(
        name="packed_bf16",
        what="half precision: PyTorch bf16, padding-free",
        family="quantization",
        make=partial(packed, precision="bf16"),
        ordered=False,
        missing=no_bf16,
    ),
    Technique(
        name="openvino_bf16",
        what="half precision: OpenVINO bf16",
        family="quantization",
        make=partial(graph, name="openvino", precision="bf16"),
        missing=no_bf16,
    ),
    Technique(
        name="openvino_int8",
        what="after training, weights and activations, static: OpenVINO int8",
        family="quantization",
        make=partial(graph, name="openvino", precision="int8"),
    ),
    Technique(
        name="onnx_int8",
        what="after training, weights and activations, dynamic: ONNX Runtime int8",
        family="quantization",
        make=onnx_int8,
    ),
    Technique(
        name="halved",
        what="structured, half of the heads and units at once by ZipLM, not trained: OpenVINO fp32",
        family="pruning",
        make=partial(halved, precision="fp32"),
    ),
    Technique(
        name="halved_int8",
        what="the same, then int8: OpenVINO int8",
        family="pruning",
        make=partial(halved, precision="int8"),
    ),
)
