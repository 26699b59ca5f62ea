"""Encoders in ONNX Runtime: one portable file.

Shapes: T packed tokens, B documents, S padded length, D width, M selected tokens.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from terrazzo.errors import InputError
from terrazzo.nn import Encoder, EncoderConfig
from terrazzo.packed import Packed
from terrazzo.runtime.contract import Precision
from terrazzo.runtime.graph import GraphEncoder, example_inputs, graph_inputs
from terrazzo.runtime.machine import this_machine

OPSET = 17
#: The names of the dimensions that differ from batch to batch.
_DIMENSIONS = {
    "ids": "T",
    "lengths": "B",
    "tokens": "BS",
    "places": "T",
    "select": "M",
    "types": "T",
    "positions": "T",
    "hidden": "M",
}


def to_onnx(encoder: Encoder, path: str | Path) -> None:
    """Write the graph of an encoder with its weights as one ONNX file, for any batch size and length.

    Inputs and output are those of `to_openvino`.

    Raises:
        InputError: onnx is not installed.
    """
    _import("onnx", "export")
    inputs = example_inputs(encoder.config)
    dynamic = {name: dict(enumerate(_DIMENSIONS[name])) for name in (*inputs, "hidden")}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, about shapes that become parts of the graph
        torch.onnx.export(
            GraphEncoder(encoder).eval(),
            (),
            str(path),
            kwargs=dict(inputs),
            input_names=list(inputs),
            output_names=["hidden"],
            dynamic_axes=dynamic,
            opset_version=OPSET,
            dynamo=False,
        )


def quantise_onnx(source: str | Path, path: str | Path, reduce_range: bool = False) -> None:
    """Write the graph of `source` with int8 weights, one scale a channel; activations are quantised as they come.

    For comparisons alone: the range of activations is that of all tokens of a batch, so what a text gets depends on the
    texts beside it, which no model that `export` makes may do.

    Args:
        reduce_range: weights of 7 bits, for CPUs without VNNI, whose 16-bit sums would saturate.

    Raises:
        InputError: onnx or onnxruntime is not installed.
    """
    _import("onnx", "export")
    _import("onnxruntime", "export")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(dir=Path(path).parent) as folder, _unadvised():
        quantize_dynamic(
            source,
            Path(folder) / "q.onnx",
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
        )
        os.replace(Path(folder) / "q.onnx", path)


class OnnxRuntime:
    """An ONNX file in place of an encoder; safe to call from many threads.

    Args:
        path: of `to_onnx` or `quantise_onnx`.
        precision: what the file computes in.
        streams: batches meant to run at the same time; None takes one a core.
        threads: cores used, shared evenly among the streams; None takes all that this process may use.

    Raises:
        InputError: onnxruntime is not installed, or it does not read the file.
    """

    name = "onnx"
    pads, device = True, torch.device("cpu")

    def __init__(
        self,
        path: str | Path,
        config: EncoderConfig,
        precision: Precision = "fp32",
        batch_tokens: int = 2048,
        streams: int | None = None,
        threads: int | None = None,
    ) -> None:
        ort = _import("onnxruntime", "export")
        threads = threads or this_machine().cores
        self.config, self.precision, self.batch_tokens = config, precision, batch_tokens
        self.streams = min(streams or threads, threads)
        options = ort.SessionOptions()
        options.intra_op_num_threads = max(1, threads // self.streams)
        options.inter_op_num_threads = 1
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file")
        try:
            self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors share no class of their own
            raise InputError(f"{path}: ONNX Runtime does not read it: {error}") from None

    @classmethod
    def open(
        cls, path: str | Path, config: EncoderConfig, precision: Precision = "fp32", **settings: Any
    ) -> OnnxRuntime:
        """The runtime of a file written by `to_onnx` or `quantise_onnx`."""
        return cls(path, config, precision, **settings)

    def __call__(self, batch: Packed, select_M: Tensor | None = None) -> Tensor:
        """Hidden states `(T, D)`, or `(M, D)` of the tokens at `select_M`; fp32, on the CPU.

        Raises:
            InputError: a document longer than a learned position table.
        """
        inputs = graph_inputs(batch, self.config, select_M)
        read = [port.name for port in self.session.get_inputs()]  # without any heads, fewer than there are
        (hidden_MD,) = self.session.run(["hidden"], {name: inputs[name] for name in read})
        return torch.from_numpy(hidden_MD)


@contextlib.contextmanager
def _unadvised() -> Iterator[None]:
    """Without warnings on the log, of which ONNX Runtime has one for every model that is quantised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _import(name: str, extra: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise InputError(f"the runtime onnx needs {name}: pip install 'terrazzo[{extra}]'") from None
