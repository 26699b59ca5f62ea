"""Differences of fine-tunings in small files: a bitmap and few values for each tensor, whole or absent.

Shapes: N entries of a tensor, S of them stored.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from terrazzo.compression.deltas import Base, Choice, Delta, Values, from_half, to_half
from terrazzo.config import config, from_dict, to_dict
from terrazzo.errors import InputError
from terrazzo.provenance import write_bytes_atomic
from terrazzo.tasks.choice import TaskConfig
from terrazzo.tasks.model import save_task_model
from terrazzo.tasks.training import tokenizer_file

FORMAT: Literal["terrazzo-delta-1"] = "terrazzo-delta-1"
_KEPT, _VALUES = ".kept", ".values"


@config
class DeltaHeader:
    """What a delta file says of itself, in its metadata.

    Args:
        shifts: powers of two by which the fp16 values of a tensor are multiplied.
    """

    base: str
    task: TaskConfig
    max_len: int
    p: float
    seed: int
    values: Values
    shifts: dict[str, int]
    choice: Choice = "even"


def save_delta(delta: Delta, file: str | Path) -> int:
    """Write a delta file whole: for each tensor a bitmap of its entries and the values of those that are not 0.

    Returns:
        its bytes on the disk.
    """
    file, tensors = Path(file), dict[str, Tensor]()
    for name, change in delta.changes.items():
        flat_N = change.flatten()
        kept_N = flat_N != 0
        bits = np.packbits(kept_N.numpy(), bitorder="little")
        values_S = flat_N[kept_N]
        tensors[name + _KEPT] = torch.from_numpy(bits)
        tensors[name + _VALUES] = to_half(values_S, delta.shifts[name]) if delta.values == "fp16" else values_S
    tensors |= {name: tensor.detach().contiguous() for name, tensor in delta.head.items()}
    names = ("base", "task", "max_len", "p", "seed", "values", "shifts", "choice")
    header = json.dumps({name: to_dict(getattr(delta, name)) for name in names}, allow_nan=False)
    write_bytes_atomic(file, save(tensors, {"format": FORMAT, "delta": header}))
    return file.stat().st_size


def load_delta(file: str | Path, base: Base) -> Delta:
    """Read a delta file against its base.

    Raises:
        InputError: no such file, a damaged one, or another base than the one it was made of.
    """
    file = Path(file)
    header, tensors = _read(file)
    if header.base != base.fingerprint:
        raise InputError(
            f"{file}: is a difference to a base with the fingerprint {header.base}, {base.folder} has "
            f"{base.fingerprint}: give the model that the fine-tuning began with"
        )
    changes, head = {}, dict(tensors)
    for name, shift in header.shifts.items():
        try:
            bits, values_S = head.pop(name + _KEPT), head.pop(name + _VALUES)
            changes[name] = _unpacked(bits, values_S, shift, base.state[name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise InputError(f"{file}: {name} does not fit the base ({error}); copy the file again") from None
    return Delta(
        base=header.base,
        changes=changes,
        shifts=header.shifts,
        head=head,
        task=header.task,
        max_len=header.max_len,
        p=header.p,
        seed=header.seed,
        values=header.values,
        choice=header.choice,
    )


def restore(base: str | Path, file: str | Path, out: str | Path) -> Path:
    """Write the task folder that a delta file and its base make.

    Raises:
        InputError: as `load_delta`, or `out` holds something else.
    """
    opened = Base.open(base)
    delta = load_delta(file, opened)
    note: dict[str, Any] = {"delta": {"file": str(file), "base": str(base), "p": delta.p, "seed": delta.seed}}
    with tokenizer_file(opened.tokenizer) as tokenizer:
        return save_task_model(out, delta.model(opened), tokenizer, note, max_len=delta.max_len)


def _unpacked(bits: Tensor, values_S: Tensor, shift: int, like: Tensor) -> Tensor:
    kept = np.unpackbits(bits.numpy(), count=like.numel(), bitorder="little").astype(bool)
    change_N = torch.zeros(like.numel())
    change_N[torch.from_numpy(kept)] = from_half(values_S, shift) if values_S.dtype == torch.float16 else values_S
    return change_N.view_as(like)


def _read(file: Path) -> tuple[DeltaHeader, dict[str, Tensor]]:
    if not file.is_file():
        raise InputError(f"{file}: no such file; terrazzo's delta files are written by save_delta")
    try:
        with safe_open(file, framework="pt") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise InputError(f"{file}: format is {metadata.get('format')!r}, not {FORMAT!r}: not a delta file")
            header = from_dict(DeltaHeader, json.loads(metadata["delta"]), str(file))
            return header, {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise InputError(f"{file}: truncated or damaged ({error}); copy it again") from None
