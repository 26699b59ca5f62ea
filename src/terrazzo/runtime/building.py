"""One graph for each runtime that is tried, each in a folder of its own until one is kept."""

from __future__ import annotations

import copy
import functools
import importlib.util
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from terrazzo.nn import Encoder
from terrazzo.packed import Packed
from terrazzo.runtime.agreement import Agreement, Judge
from terrazzo.runtime.choice import Opener
from terrazzo.runtime.contract import Precision, Runtime, TorchRuntime
from terrazzo.runtime.folder import GRAPHS, RuntimeName
from terrazzo.runtime.machine import Machine, this_machine
from terrazzo.runtime.onnx import OnnxRuntime, to_onnx
from terrazzo.runtime.openvino import OpenVinoRuntime, save_openvino, to_openvino
from terrazzo.runtime.quantise import Target, quantise

#: The runtimes that have each precision.
RUNTIMES: dict[Precision, tuple[RuntimeName, ...]] = {
    "fp32": ("torch", "openvino", "onnx"),
    "bf16": ("torch", "openvino"),
    "int8": ("openvino",),
}
#: The packages that making a graph needs, where PyTorch is not enough.
PACKAGES: dict[tuple[RuntimeName, Precision], tuple[str, ...]] = {
    ("torch", "fp32"): (),
    ("torch", "bf16"): (),
    ("openvino", "fp32"): ("openvino",),
    ("openvino", "bf16"): ("openvino",),
    ("openvino", "int8"): ("openvino", "nncf"),
    ("onnx", "fp32"): ("onnx", "onnxruntime"),
}


def installed(runtime: RuntimeName, precision: Precision) -> bool:
    """Whether a runtime has a precision and all that making its graph needs is there."""
    return runtime in RUNTIMES[precision] and all(map(importlib.util.find_spec, PACKAGES[runtime, precision]))


#: Documents that rank the parts of an int8 graph by what each costs.
_RANKING = 32


@dataclass(frozen=True, kw_only=True)
class Built:
    """A runtime's graph.

    Args:
        open: the runtime, for a number of streams.
        agreement: with fp32, where building had to measure it.
        reverted, half_range: of int8, see `quantise.Quantised`.
    """

    runtime: RuntimeName
    open: Opener
    agreement: Agreement | None = None
    reverted: tuple[str, ...] = ()
    half_range: bool = False


class Builder:
    """Makes the graphs of one encoder at one precision, each when it is first asked for.

    Args:
        folder: for the graphs; it is removed when one is kept.
        setting: documents that set the ranges of int8, each its own batch.
        judge: measures agreement with fp32 on other documents; target: what int8 must reach.
        progress: is told what is made now, where that takes long; log: what was found on the way.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        precision: Precision,
        folder: Path,
        setting: Sequence[Packed],
        judge: Judge,
        target: Target,
        machine: Machine | None = None,
        log: Callable[[str], None] = print,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.encoder, self.precision, self.folder = encoder, precision, folder
        self.setting, self.judge, self.target = setting, judge, target
        self.machine, self.log, self.progress = machine or this_machine(), log, progress
        self.build: Callable[[str], Built] = functools.cache(self._build)

    def openers(self, names: Sequence[RuntimeName]) -> dict[str, Opener]:
        """What `choose` takes: each opener builds its graph when it is first called."""
        return {name: functools.partial(self._open, name) for name in names}

    def _open(self, name: RuntimeName, streams: int | None) -> Runtime:
        return self.build(name).open(streams)

    def keep(self, built: Built, folder: Path) -> None:
        """Move the graph of `built` into `folder` and remove the others."""
        for name in GRAPHS[built.runtime]:
            (self.folder / name).rename(folder / name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _build(self, name: str) -> Built:
        self.folder.mkdir(exist_ok=True)
        makers = {"torch": self._torch, "openvino": self._openvino, "onnx": self._onnx}
        return makers[name]()

    def _torch(self) -> Built:
        low = self.precision == "bf16"
        encoder = copy.deepcopy(self.encoder).to(torch.bfloat16) if low else self.encoder
        return Built(runtime="torch", open=lambda streams: TorchRuntime(encoder, streams=streams))

    def _openvino(self) -> Built:
        graph, config = self.folder / GRAPHS["openvino"][0], self.encoder.config
        model, found = to_openvino(self.encoder), {}
        if self.precision == "int8":
            if self.progress is not None:
                self.progress(f"quantising ({len(self.setting):,} texts)...")
            ranker = Judge(TorchRuntime(self.encoder), self.setting[:_RANKING])
            quantised = quantise(
                model,
                config,
                self.setting,
                self.judge,
                ranker,
                machine=self.machine,
                target=self.target,
                log=self.log,
            )
            model = quantised.model
            found = {name: getattr(quantised, name) for name in ("agreement", "reverted", "half_range")}
        save_openvino(model, graph)
        open_graph = functools.partial(OpenVinoRuntime.open, graph, config, self.precision)
        return Built(runtime="openvino", open=self._opener(open_graph), **cast(Mapping[str, Any], found))

    def _onnx(self) -> Built:
        graph = self.folder / GRAPHS["onnx"][0]
        to_onnx(self.encoder, graph)
        open_graph = functools.partial(OnnxRuntime.open, graph, self.encoder.config, self.precision)
        return Built(runtime="onnx", open=self._opener(open_graph))

    def _opener(self, open_graph: Callable[..., Runtime]) -> Opener:
        return lambda streams: open_graph(streams=streams, threads=self.machine.cores)
