"""Encoders with random weights in a runtime, which are only timed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from terrazzo.compression.latency import Conditions
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, EncoderConfig
from terrazzo.packed import Packed
from terrazzo.runtime import OnnxRuntime, OpenVinoRuntime, Runtime, TorchRuntime, to_onnx, to_openvino
from terrazzo.runtime.building import RUNTIMES
from terrazzo.runtime.machine import Machine
from terrazzo.runtime.quantise import simulate

#: The runtime of an encoder of some config, with weights that do not matter.
Opener = Callable[[EncoderConfig], Runtime]
#: Documents that set the ranges of int8; how well they do does not change how long a product takes.
_CALIBRATION = 4


def opener_of(conditions: Conditions, machine: Machine) -> Opener:
    """What makes the runtime of an encoder of some config, with one stream.

    Raises:
        InputError: the runtime does not have the precision; when it is called, a package that is not installed.
    """
    if conditions.runtime not in RUNTIMES[conditions.precision]:
        known = " or ".join(RUNTIMES[conditions.precision])
        raise InputError(f"runtime {conditions.runtime} has no {conditions.precision}: take {known}")

    def opened(config: EncoderConfig) -> Runtime:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder = Encoder(config).eval()
        return open_encoder(encoder, conditions, machine)

    return opened


def open_encoder(encoder: Encoder, conditions: Conditions, machine: Machine) -> Runtime:
    """The runtime of an encoder, with one stream; int8 takes its ranges from random tokens, which only timing bears."""
    make = {"torch": _torch, "openvino": _openvino, "onnx": _onnx}[conditions.runtime]
    return make(encoder, conditions, machine)


def _torch(encoder: Encoder, conditions: Conditions, machine: Machine) -> Runtime:
    low = conditions.precision == "bf16"
    return TorchRuntime(encoder.to(torch.bfloat16) if low else encoder, streams=1)


def _openvino(encoder: Encoder, conditions: Conditions, machine: Machine) -> Runtime:
    model, config = to_openvino(encoder), encoder.config
    if conditions.precision == "int8":
        model = simulate(model, config, _made_up(config, conditions), half_range=not machine.has_int8)
    return OpenVinoRuntime(model, config, conditions.precision, streams=1, threads=conditions.threads)


def _onnx(encoder: Encoder, conditions: Conditions, machine: Machine) -> Runtime:
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "encoder.onnx"
        to_onnx(encoder, graph)
        return OnnxRuntime(graph, encoder.config, conditions.precision, streams=1, threads=conditions.threads)


def _made_up(config: EncoderConfig, conditions: Conditions) -> list[Packed]:
    draw = np.random.default_rng(0)
    lengths = conditions.lengths[:_CALIBRATION]
    return [Packed.from_sequences([draw.integers(0, config.vocab_size, length)]) for length in lengths]
