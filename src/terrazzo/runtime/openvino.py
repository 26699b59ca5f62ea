"""Encoders in OpenVINO: the graph, its file, and a runtime for many threads.

Shapes: T packed tokens, B documents, S padded length, D width, M selected tokens.
"""

from __future__ import annotations

import queue
import shutil
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from terrazzo.errors import InputError, RunError
from terrazzo.nn import Encoder, EncoderConfig
from terrazzo.packed import Packed
from terrazzo.runtime.contract import Precision
from terrazzo.runtime.graph import GraphEncoder, example_inputs, graph_inputs, rounded
from terrazzo.runtime.machine import this_machine
from terrazzo.runtime.signal_stack import own_signal_stack

if TYPE_CHECKING:
    import openvino

#: What the plugin computes in where the graph does not say int8 itself.
_HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


def import_openvino() -> Any:
    """The openvino package, with its reports to its maker switched off in this process.

    Raises:
        InputError: openvino is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # openvino and nncf then use a stub
    try:
        import openvino
    except ModuleNotFoundError:
        raise InputError("the runtime openvino needs a package: pip install 'terrazzo[serve]'") from None
    return openvino


def to_openvino(encoder: Encoder) -> openvino.Model:
    """The graph of an encoder, for any batch size and length.

    Its inputs are those of `graph_inputs`, all int64, by name; its output is "hidden", fp32 `(M, D)`.

    Raises:
        InputError: openvino is not installed.
    """
    ov = import_openvino()
    module = GraphEncoder(encoder).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, about shapes that become parts of the graph
        model = ov.convert_model(module, example_input=example_inputs(encoder.config))
    for port in model.inputs:
        (name,) = set(port.get_names()) & set(example_inputs(encoder.config))
        port.get_tensor().set_names({name})
    model.outputs[0].get_tensor().set_names({"hidden"})
    return model


def save_openvino(model: openvino.Model, path: str | Path) -> None:
    """Write `path` (.xml) and the weights beside it (.bin), in the precision that they have.

    Raises:
        RunError: they cannot be written.
    """
    try:
        import_openvino().save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # OpenVINO's, which does not say why
        free = shutil.disk_usage(Path(path).parent).free
        raise RunError(
            f"{path}: OpenVINO cannot write it, with {free / 1e6:,.0f} MB free there: free some space, or name another "
            f"folder, and start the same command again ({' '.join(str(error).split())})"
        ) from None


class OpenVinoRuntime:
    """An OpenVINO graph in place of an encoder; safe to call from many threads, `streams` of which run at a time.

    OpenVINO prepares kernels for every shape that it meets and keeps them, so batches are rounded up to few shapes.

    Args:
        model: of `to_openvino`, or that graph quantised.
        precision: "fp32" computes in fp32 throughout; "bf16" asks for bf16 products, which are quick only on machines
            that have them (AMX or AVX512-BF16); "int8" is for a quantised graph, the rest of which runs in fp32.
        streams: batches at the same time; None takes one a core, which serves most texts a second.
        threads: cores used, shared evenly among the streams; None takes all that this process may use.

    Raises:
        InputError: openvino is not installed.
    """

    name = "openvino"
    pads, device = True, torch.device("cpu")

    def __init__(
        self,
        model: openvino.Model,
        config: EncoderConfig,
        precision: Precision = "fp32",
        batch_tokens: int = 2048,
        streams: int | None = None,
        threads: int | None = None,
    ) -> None:
        threads = threads or this_machine().cores
        self.config, self.precision, self.batch_tokens = config, precision, batch_tokens
        self.streams = min(streams or threads, threads)
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": self.streams,
            "ENABLE_CPU_PINNING": False,
        }
        openvino = import_openvino()
        with own_signal_stack():
            self.compiled = openvino.Core().compile_model(model, "CPU", settings)
        self._requests: queue.LifoQueue[Any] = queue.LifoQueue()
        for _ in range(self.streams):
            self._requests.put(self.compiled.create_infer_request())

    @classmethod
    def open(
        cls, path: str | Path, config: EncoderConfig, precision: Precision = "fp32", **settings: Any
    ) -> OpenVinoRuntime:
        """The runtime of a graph written by `save_openvino`.

        Raises:
            InputError: no such file, or not a graph that OpenVINO reads.
        """
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file")
        core = import_openvino().Core()
        core.set_property({"ENABLE_MMAP": False})  # whoever writes over the file would change or end this process
        try:
            model = core.read_model(path)
        except RuntimeError as error:
            raise InputError(f"{path}: OpenVINO does not read it: {error}") from None
        return cls(model, config, precision, **settings)

    def __call__(self, batch: Packed, select_M: Tensor | None = None) -> Tensor:
        """Hidden states `(T, D)`, or `(M, D)` of the tokens at `select_M`; fp32, on the CPU.

        Raises:
            InputError: a document longer than a learned position table.
        """
        inputs = graph_inputs(batch, self.config, select_M)
        wanted = len(inputs["select"])
        request = self._requests.get()
        try:
            (hidden_MD,) = request.infer(rounded(inputs), share_inputs=True).values()
        finally:
            self._requests.put(request)
        return torch.from_numpy(np.asarray(hidden_MD)[:wanted])
