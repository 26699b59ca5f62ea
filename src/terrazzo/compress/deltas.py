"""What a fine-tuning changed: its difference to the base, most of it dropped at random, saved in a small file.

Only the encoder has a difference. Everything beside it (the head of the task) is kept whole.

Shapes: N entries of a tensor, S of them stored.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tokenizers import Tokenizer
from torch import Tensor

from terrazzo.checkpoint import empty_model, load_model, load_tokenizer
from terrazzo.config import config, from_dict, to_dict
from terrazzo.data.keyed import derive
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, EncoderConfig, MaskedLM
from terrazzo.tasks.choice import TaskConfig
from terrazzo.tasks.model import LoadedTask, TaskModel, load_task_model, model_folder, save_task_model
from terrazzo.tasks.task import Task
from terrazzo.tasks.training import tokenizer_file

Values = Literal["fp16", "fp32"]
FORMAT: Literal["terrazzo-delta-1"] = "terrazzo-delta-1"
_KEPT, _VALUES = ".kept", ".values"
#: Fields of an architecture by which models of one base may differ.
_FREE_FIELDS = ("dropout", "attention_dropout")


@dataclass(frozen=True, kw_only=True)
class Base:
    """The encoder that fine-tunings began with.

    Args:
        state: its tensors by name, fp32.
        fingerprint: of names, shapes and values; it does not depend on the files' format.
    """

    folder: Path
    config: EncoderConfig
    state: Mapping[str, Tensor]
    tokenizer: Tokenizer
    fingerprint: str

    @classmethod
    def open(cls, path: str | Path) -> Base:
        """Read a model folder, ours or a published one.

        Raises:
            InputError: as `load_model`.
        """
        folder = model_folder(path)
        loaded = load_model(folder)
        encoder = loaded.encoder if isinstance(loaded, MaskedLM) else loaded
        state, tokenizer = encoder.state_dict(), load_tokenizer(folder, encoder.config)
        return cls(
            folder=folder, config=encoder.config, state=state, tokenizer=tokenizer, fingerprint=fingerprint(state)
        )

    @property
    def bytes(self) -> int:
        """Of the encoder's tensors in fp32."""
        return sum(tensor.nbytes for tensor in self.state.values())

    def open_task(self, path: str | Path) -> LoadedTask:
        """Read a fine-tuning of this base.

        Raises:
            InputError: no task folder, another architecture or another vocabulary.
        """
        loaded = load_task_model(path)
        for name, value in to_dict(self.config).items():
            other = to_dict(loaded.model.config)[name]
            if other != value and name not in _FREE_FIELDS:
                raise InputError(f"{path}: {name} is {other}, that of the base {self.folder} is {value}: another base")
        if loaded.tokenizer.get_vocab() != self.tokenizer.get_vocab():
            raise InputError(f"{path}: its vocabulary is not that of the base {self.folder}: another base")
        return loaded


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """A hash of tensors by name: equal for equal values, in whatever file they came."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def kept_entries(shape: torch.Size, p: float, key: int) -> Tensor:
    """bool: each entry kept with probability 1 - p, drawn from a key alone."""
    draw = torch.Generator().manual_seed(key % 2**63)
    return torch.rand(shape, generator=draw) >= p


def drop_and_rescale(change: Tensor, kept: Tensor, p: float, rescale: bool = True) -> Tensor:
    """The kept entries over 1 - p, so that their expectation is the whole change; the others 0.

    Reference: DARE (arXiv 2311.03099), Eq. 1 to 3.
    """
    dropped = change * kept
    return dropped / (1 - p) if rescale else dropped


def drop_all(
    changes: Mapping[str, Tensor], p: float, seed: int, *, label: str = "", rescale: bool = True
) -> dict[str, Tensor]:
    """`drop_and_rescale` of each tensor, with a key of its own from seed, label and name.

    Raises:
        InputError: p is no probability below 1.
    """
    check_probability(p)
    keys = {name: derive(seed, "dare", label, name) for name in changes}
    return {
        name: drop_and_rescale(change, kept_entries(change.shape, p, keys[name]), p, rescale)
        for name, change in changes.items()
    }


def check_probability(p: float) -> None:
    """Refuse a probability to drop entries by that leaves none or more than all."""
    if not 0 <= p < 1:
        raise InputError(f"p is the probability to drop an entry, at least 0 and below 1, got {p}")


def changes_of(model: TaskModel, base: Base) -> dict[str, Tensor]:
    """What fine-tuning added to every tensor of the encoder; the head is no part of it."""
    state = model.encoder.state_dict()
    return {name: state[name] - tensor for name, tensor in base.state.items()}


@dataclass(frozen=True, kw_only=True)
class Delta:
    """A fine-tuning as what it adds to its base.

    Args:
        base: fingerprint of the base.
        changes: of the encoder's tensors that change, dense, with exactly the values that a file holds.
        head: tensors beside the encoder, whole, by their names in the task's model.
        p: share that was dropped at random.
        values: precision of a file's values.
        shifts: for each change the power of two that its fp16 values are multiplied by; 0 in fp32.
    """

    base: str
    changes: Mapping[str, Tensor]
    shifts: Mapping[str, int]
    head: Mapping[str, Tensor]
    task: Task
    max_len: int
    p: float
    seed: int
    values: Values

    @classmethod
    def of(
        cls,
        base: Base,
        path: str | Path,
        p: float = 0.9,
        seed: int = 0,
        values: Values = "fp16",
        rescale: bool = True,
    ) -> Delta:
        """The difference of a task folder to its base, dropped, rescaled and rounded to what a file holds.

        Raises:
            InputError: a folder of another base, or a p that is no probability below 1.
        """
        loaded = base.open_task(path)
        dropped = drop_all(changes_of(loaded.model, base), p, seed, rescale=rescale)
        changed = {name: change for name, change in dropped.items() if change.any()}
        shifts = {name: _shift(change) if values == "fp16" else 0 for name, change in changed.items()}
        return cls(
            base=base.fingerprint,
            changes={name: rounded(change, shifts[name], values) for name, change in changed.items()},
            shifts=shifts,
            head=head_of(loaded.model),
            task=loaded.model.task,
            max_len=loaded.max_len,
            p=p,
            seed=seed,
            values=values,
        )

    def model(self, base: Base) -> TaskModel:
        """The base with the changes added, and the head.

        Raises:
            InputError: another base than that of the difference.
        """
        if base.fingerprint != self.base:
            raise InputError(
                f"{base.folder}: its weights have the fingerprint {base.fingerprint}, the difference is to a base with "
                f"{self.base}: give the model that the fine-tuning began with"
            )
        return task_model(base, add(base.state, self.changes), self.head, self.task)


def head_of(model: TaskModel) -> dict[str, Tensor]:
    """Every tensor beside the encoder."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("encoder.")}


def add(state: Mapping[str, Tensor], changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with what is added to some of them."""
    return {name: tensor + changes[name] if name in changes else tensor for name, tensor in state.items()}


def task_model(base: Base, state: Mapping[str, Tensor], head: Mapping[str, Tensor], task: Task) -> TaskModel:
    """A task's model with copies of an encoder's tensors and of a head's."""
    encoder = empty_model(base.config, with_head=False)
    assert isinstance(encoder, Encoder)
    with torch.random.fork_rng(devices=[]):  # first weights are drawn only to be replaced
        model = TaskModel(encoder, task)
    whole = {**{f"encoder.{name}": tensor for name, tensor in state.items()}, **head}
    model.load_state_dict({name: tensor.clone() for name, tensor in whole.items()}, assign=True)
    return model


def rounded(change: Tensor, shift: int, values: Values) -> Tensor:
    """The change as a file gives it back, to the sign of its zeros."""
    return (change if values == "fp32" else _from_half(_to_half(change, shift), shift)) + 0.0


def _shift(change: Tensor) -> int:
    """The power of two that brings the largest value just below the largest of fp16, so that small ones keep digits."""
    return min(100, 15 - math.frexp(float(change.abs().max()))[1])


def _to_half(change: Tensor, shift: int) -> Tensor:
    return (change * 2.0**shift).half()


def _from_half(half: Tensor, shift: int) -> Tensor:
    return half.float() * 2.0**-shift


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
        tensors[name + _VALUES] = _to_half(values_S, delta.shifts[name]) if delta.values == "fp16" else values_S
    tensors |= {name: tensor.detach().contiguous() for name, tensor in delta.head.items()}
    names = ("base", "task", "max_len", "p", "seed", "values", "shifts")
    header = json.dumps({name: to_dict(getattr(delta, name)) for name in names}, allow_nan=False)
    _write_atomic(file, save(tensors, {"format": FORMAT, "delta": header}))
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
    change_N[torch.from_numpy(kept)] = _from_half(values_S, shift) if values_S.dtype == torch.float16 else values_S
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


def _write_atomic(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
