"""An exported folder: a model folder with `runtime.json` and the graph that stands for its encoder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from terrazzo.checkpoint import load_config, load_model
from terrazzo.checkpoint.atomic import standing
from terrazzo.config import config, from_dict, to_dict
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, MaskedLM
from terrazzo.provenance import provenance, write_json_atomic
from terrazzo.runtime.agreement import Agreement
from terrazzo.runtime.contract import Precision, Runtime, TorchRuntime
from terrazzo.runtime.machine import Machine, this_machine
from terrazzo.runtime.onnx import OnnxRuntime
from terrazzo.runtime.openvino import OpenVinoRuntime

RECORD = "runtime.json"
FORMAT: Literal["terrazzo-runtime-1"] = "terrazzo-runtime-1"
RuntimeName = Literal["torch", "openvino", "onnx"]
#: The files of each runtime's graph; the first is what its reader opens.
GRAPHS: dict[RuntimeName, tuple[str, ...]] = {
    "torch": (),
    "openvino": ("encoder.xml", "encoder.bin"),
    "onnx": ("encoder.onnx",),
}
#: Bytes of a graph, or of weights, that are read again to be hashed whenever they are opened: two tenths of a second.
_CHEAP = 200_000_000
_AGAIN = "copy the folder again, or export the model again"


@config
class StoredFile:
    """What a file was when the folder was written."""

    bytes: int
    sha256: str


@config
class RuntimeRecord:
    """runtime.json.

    Args:
        files: every other file of the folder.
        machine: where rates were measured and graphs made.
        batch_tokens, streams: what ran fastest there; None leaves them to the runtime.
        agreement: with the model in fp32; None where nothing was computed differently.
        rates: tokens a second of every runtime that was tried there.
        reverted: parts of an int8 model that stayed fp32.
        half_range: whether int8 weights keep to 7 bits, so that CPUs without VNNI do not saturate.
    """

    format: Literal["terrazzo-runtime-1"] = FORMAT
    runtime: RuntimeName
    precision: Precision
    max_len: int
    files: dict[str, StoredFile]
    machine: Machine
    batch_tokens: int | None = None
    streams: int | None = None
    agreement: Agreement | None = None
    rates: dict[str, float] = field(default_factory=dict)
    reverted: tuple[str, ...] = ()
    half_range: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)


def is_exported(folder: str | Path) -> bool:
    """Whether a model folder names a runtime of its own.

    Raises:
        InputError: it has a graph and has lost its runtime.json.
    """
    folder = standing(folder)
    if (folder / RECORD).is_file():
        return True
    for graph, *_ in filter(None, GRAPHS.values()):
        if (folder / graph).is_file():
            raise InputError(f"{folder / RECORD}: missing beside {graph}, so the folder is not whole: {_AGAIN}")
    return False


def write_record(folder: Path, **values: Any) -> RuntimeRecord:
    """Write runtime.json into `folder`, whose other files are all there; last, so that it speaks for the whole."""
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    record = RuntimeRecord(
        files={name: _stored(folder / name) for name in names},
        machine=this_machine(),
        provenance=provenance(),
        **values,
    )
    write_json_atomic(folder / RECORD, to_dict(record))
    return record


def read_record(folder: str | Path, verify: bool = False, run: RuntimeName | None = None) -> RuntimeRecord:
    """The runtime.json of an exported folder whose files are all there, of their sizes, and are what was written.

    Hashes are compared of every file but graphs and weights; of those, what `run` reads, where that is quick.

    Args:
        verify: compare the hash of every file.
        run: the runtime that is to read the folder; None is the one that it was exported for.

    Raises:
        InputError: no or a damaged runtime.json, or a file that is missing or is not what was written.
    """
    folder = standing(folder)
    record = from_dict(RuntimeRecord, read_values(folder / RECORD), str(folder / RECORD))
    missing = [name for name in GRAPHS[record.runtime] if name not in record.files]
    if missing:
        raise InputError(f"{folder / RECORD}: lists no {missing[0]}, the graph of {record.runtime}; {_AGAIN}")
    unread = set() if verify else _unread(record.files, run or record.runtime)
    for name, stored in record.files.items():
        _check(folder / name, stored, name not in unread)
    return record


def _unread(files: Mapping[str, StoredFile], run: RuntimeName) -> set[str]:
    """The graphs and weights whose hashes are not compared: what does not run, and what would take long to read."""
    weights = {name for name in files if is_weights(name) and not name.endswith(".json")}
    numbers = weights.union(*GRAPHS.values()) & files.keys()
    running = weights if run == "torch" else set(GRAPHS[run])
    cheap = sum(files[name].bytes for name in running) <= _CHEAP
    return numbers - running if cheap else numbers


def open_runtime(
    folder: str | Path, streams: int | None = None, threads: int | None = None, verify: bool = False
) -> Runtime:
    """The runtime of an exported folder; PyTorch in fp32 for a model folder that was not exported.

    Args:
        streams: batches at the same time; None takes what was measured when this machine exported it, or the
            runtime's default.
        threads: cores used, shared evenly among the streams; None takes all that this process may use.
        verify: compare the hash of every file first.

    Raises:
        InputError: not a model folder, a damaged or partial one, a missing package, or int8 that this machine would
            compute wrongly.
    """
    folder = standing(folder)
    if not is_exported(folder):
        return _torch(folder, "fp32", {"streams": streams or 1})
    record, machine = read_record(folder, verify), this_machine()
    refuse_saturation(record, machine, folder)
    for caution in cautions(record, machine):
        warnings.warn(f"{folder}: {caution}", stacklevel=2)
    same = machine.key == record.machine.key and threads is None
    settings: dict[str, Any] = {"streams": streams or (record.streams if same else None)}
    settings |= {"batch_tokens": record.batch_tokens} if record.batch_tokens else {}
    if record.runtime == "torch":
        return _torch(folder, record.precision, settings | {"streams": settings["streams"] or 1})
    opener = OpenVinoRuntime if record.runtime == "openvino" else OnnxRuntime
    graph = folder / GRAPHS[record.runtime][0]
    return opener.open(graph, load_config(folder), record.precision, **settings, threads=threads or machine.cores)


def load_weights(folder: str | Path) -> MaskedLM | Encoder:
    """The model of an exported folder in PyTorch.

    Raises:
        InputError: the folder is damaged or partial.
    """
    read_record(folder, run="torch")
    return load_model(folder)


def cautions(record: RuntimeRecord, machine: Machine) -> list[str]:
    """What a person should know who opens on `machine` what another machine exported."""
    if machine.key == record.machine.key:
        return []
    said = []
    if record.precision == "int8" and record.machine.has_int8 and not machine.has_int8:
        said.append("this CPU has no VNNI: int8 runs without its speed; export again here, with --precision fp32")
    if record.precision == "bf16" and not machine.has_bf16:
        said.append("this CPU has no bf16 products: they run in fp32, no faster; export again here to choose anew")
    return said


def refuse_saturation(record: RuntimeRecord, machine: Machine, folder: Path) -> None:
    """Raise InputError where int8 sums of full-range weights would saturate.

    Kernels for AVX2 and AVX-512 without VNNI add pairs of 8-bit products in 16 bits, which weights of 7 bits survive.
    """
    if record.precision == "int8" and not record.half_range and not machine.has_int8:
        raise InputError(
            f"{folder}: its int8 weights need a CPU with VNNI, this one ({machine.cpu}) would give other answers: "
            "export the model again on this machine, which keeps weights to 7 bits, or with --precision fp32"
        )


def _torch(folder: Path, precision: Precision, settings: Mapping[str, Any]) -> TorchRuntime:
    import torch

    network = load_model(folder, None, torch.bfloat16 if precision == "bf16" else torch.float32)
    return TorchRuntime(network.encoder if isinstance(network, MaskedLM) else network, **settings)


def read_values(file: Path) -> Mapping[str, Any]:
    """The fields of a runtime.json.

    Raises:
        InputError: it is missing, does not parse, or another version wrote it.
    """
    if not file.is_file():
        raise InputError(f"{file}: missing; this is not an exported folder: terrazzo export MODEL --out DIR makes one")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: does not parse: {error}; {_AGAIN}") from None
    found = values.get("format") if isinstance(values, dict) else type(values).__name__
    if found != FORMAT:
        raise InputError(f"{file}: format is {found!r}, not {FORMAT!r}: another version of terrazzo wrote it")
    return dict(values)


def _stored(file: Path) -> StoredFile:
    return StoredFile(bytes=file.stat().st_size, sha256=_sha256(file))


def _check(file: Path, stored: StoredFile, fully: bool) -> None:
    if not file.is_file():
        raise InputError(f"{file}: missing, so the exported folder is not whole: {_AGAIN}")
    size = os.stat(file).st_size
    if size != stored.bytes:
        raise InputError(f"{file}: has {size:,} bytes, {stored.bytes:,} were written: {_AGAIN}")
    if fully and _sha256(file) != stored.sha256:
        raise InputError(f"{file}: is not the file that was written (its SHA-256 differs): {_AGAIN}")


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def model_files(folder: Path) -> list[Path]:
    """The files of a model folder that say what the model is, whoever wrote it; no optimizer, no other format."""
    weights = [file for file in folder.iterdir() if is_weights(file.name)]
    safe = [file for file in weights if "safetensors" in file.name]
    return sorted([*(safe or weights), *(folder / name for name in _DESCRIPTIONS if (folder / name).is_file())])


def is_weights(name: str) -> bool:
    """Whether a file of this name holds PyTorch's weights or their index."""
    return re.fullmatch(r"(model|pytorch_model)([\w.-]*)\.(safetensors|bin)(\.index\.json)?", name) is not None


_DESCRIPTIONS = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "task.json",
    "head.safetensors",
    "terrazzo.json",
)
