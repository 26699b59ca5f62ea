"""An encoder with the head of a task, and the folder that holds both.

Shapes: T packed tokens, B documents, M selected tokens, C outputs of the head.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor, nn

from terrazzo.checkpoint import atomic_folder, empty_model, load_config, load_model, load_tokenizer, write_model
from terrazzo.checkpoint.atomic import standing
from terrazzo.checkpoint.folder import CONFIG
from terrazzo.checkpoint.packing import PackedTensor, from_stored
from terrazzo.checkpoint.tensors import write_tensors
from terrazzo.config import config, from_dict, to_dict
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, EncoderConfig
from terrazzo.objectives import Loss, SupervisedConfig
from terrazzo.packed import Packed
from terrazzo.provenance import write_json_atomic
from terrazzo.tasks.adapters import AdapterConfig, LoraConfig, add_adapters, merge_adapters
from terrazzo.tasks.choice import TaskConfig
from terrazzo.tasks.task import Task

TASK, HEAD = "task.json", "head.safetensors"
FORMAT: Literal["terrazzo-task-1"] = "terrazzo-task-1"
#: What to type where a model has no head yet.
HOW_TO_FINETUNE = "fine-tune it first: terrazzo finetune --model MODEL --task label --train TRAIN --eval DEV --out DIR"


class TaskModel(nn.Module):
    """An encoder with the head of one task."""

    def __init__(self, encoder: Encoder, task: Task) -> None:
        super().__init__()
        self.encoder, self.task = encoder, task
        self.head = task.build_head(encoder.config)

    @property
    def config(self) -> EncoderConfig:
        return self.encoder.config

    def forward(self, batch: Packed) -> Tensor:
        """Outputs of the head: `(B, C)`, `(M, C)` or `(T, 2)`, whichever the task has."""
        outputs: Tensor = self.head(self.encoder, batch)
        return outputs

    def task_loss(self, batch: Packed, options: SupervisedConfig) -> Loss:
        """The task's loss on a batch with labels."""
        return self.task.loss(self(batch), batch, options)


@dataclass(frozen=True, kw_only=True)
class LoadedTask:
    """What a task folder holds.

    Args:
        model: the encoder with its head, in training mode, as `torch.nn.Module` is born.
        max_len: tokens of a document in training, special ones included.
        adapter: config of the adapters that the folder keeps apart, None where the encoder is whole.
    """

    model: TaskModel
    tokenizer: Tokenizer
    max_len: int
    adapter: AdapterConfig | None = None


@config
class TaskFile:
    """task.json: the task, the length it was trained with, and the adapters that are not merged."""

    format: Literal["terrazzo-task-1"] = FORMAT
    task: TaskConfig
    max_len: int
    adapter: AdapterConfig | None = None


def save_task_model(
    path: str | Path,
    model: TaskModel,
    tokenizer_file: str | Path,
    provenance: Mapping[str, Any] | None = None,
    state: Mapping[str, Tensor] | None = None,
    *,
    max_len: int,
    adapter: AdapterConfig | None = None,
) -> Path:
    """Write a task folder whole, as `save_model` does; see `write_task_model`."""
    with atomic_folder(path) as folder:
        write_task_model(folder, model, tokenizer_file, provenance, state, max_len=max_len, adapter=adapter)
    return Path(path)


def write_task_model(
    folder: Path,
    model: TaskModel,
    tokenizer_file: str | Path,
    provenance: Mapping[str, Any] | None = None,
    state: Mapping[str, Tensor] | None = None,
    *,
    max_len: int,
    adapter: AdapterConfig | None = None,
    packed: Mapping[str, PackedTensor] | None = None,
) -> None:
    """A model folder with two files more, task.json and head.safetensors, in an existing folder.

    Args:
        state: the full tensors of `model`, where its own are sharded over processes or not those to keep.
        max_len: tokens of a document in training, special ones included.
        adapter: config of the adapters where they are in the encoder, not merged; head.safetensors holds them.
        packed: matrices of few bits, by their names in `model`.
    """
    state = model.state_dict() if state is None else state
    encoder = {name: state[f"encoder.{name}"] for name in encoder_tensors(model.config)}
    rest = {name: tensor.detach() for name, tensor in state.items() if name.removeprefix("encoder.") not in encoder}
    strangers = [name for name in rest if not name.startswith("head.")]
    assert adapter is not None or not strangers, f"neither encoder nor head: {strangers}"
    few = None if packed is None else {name: tensor for name, tensor in packed.items() if name in rest}
    body = {name.removeprefix("encoder."): tensor for name, tensor in (packed or {}).items() if name not in rest}
    write_model(folder, model.encoder, tokenizer_file, provenance, encoder, None if packed is None else body)
    plain = {name: tensor.contiguous() for name, tensor in rest.items() if name not in (few or {})}
    write_tensors(plain, folder / HEAD, few)
    values = {"format": FORMAT, "task": to_dict(model.task), "max_len": max_len, "adapter": adapter_values(adapter)}
    write_json_atomic(folder / TASK, values)


def adapter_values(adapter: AdapterConfig | None) -> dict[str, Any] | None:
    """An adapter's config as files hold it: low-rank adapters, once the only ones, do not name their kind."""
    values: dict[str, Any] | None = to_dict(adapter)
    if values is not None and isinstance(adapter, LoraConfig):
        del values["kind"]
    return values


def encoder_tensors(config: EncoderConfig) -> list[str]:
    """Names of the tensors of a plain encoder, whatever adapters sit in the one at hand."""
    return list(empty_model(config, with_head=False).state_dict())


def load_task_model(
    path: str | Path,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = torch.float32,
    backend: str | None = None,
    *,
    merge: bool = True,
) -> LoadedTask:
    """Open a task folder, or the output of a fine-tuning, whose task folder is inside.

    Args:
        merge: fold adapters that the folder keeps apart into the encoder; without, they are in place, to train on.
        dtype: of the parameters; None keeps the file's.
        backend: attention backend by name; None takes the device's default.

    Raises:
        InputError: no task folder (saying how to make one), a damaged file, or tensors that do not fit; each by name.
    """
    folder = model_folder(path)
    encoder = load_model(folder, device, dtype, backend)
    if not is_task_folder(folder):
        raise InputError(f"{folder}: a model without the head of a task: {HOW_TO_FINETUNE}")
    assert isinstance(encoder, Encoder), "a task folder holds no masked-language-model head"
    return _with_head(folder, encoder, device, dtype, merge)


def load_task_head(path: str | Path) -> LoadedTask:
    """The head and tokenizer of a task folder whose encoder runs elsewhere: the one here has shapes and no values.

    Raises:
        InputError: as `load_task_model`, and a folder whose adapters are not merged.
    """
    folder = model_folder(path)
    encoder = empty_model(load_config(folder), with_head=False)
    assert isinstance(encoder, Encoder)
    loaded = _with_head(folder, encoder, None, torch.float32, merge=False)
    if loaded.adapter is not None:
        raise InputError(f"{folder / TASK}: its adapters are not merged, a runtime runs none: export the model again")
    return loaded


def _with_head(
    folder: Path, encoder: Encoder, device: torch.device | str | None, dtype: torch.dtype | None, merge: bool
) -> LoadedTask:
    file = _read_task(folder / TASK)
    with torch.random.fork_rng(devices=[]):  # first weights are drawn only to be replaced
        model = TaskModel(encoder, file.task)
        if file.adapter is not None:
            add_adapters(encoder, file.adapter, empty=True)
    stored = _read_head(folder / HEAD)
    plain = {f"encoder.{name}" for name in encoder_tensors(encoder.config)}
    wanted = {name: tensor for name, tensor in model.state_dict().items() if name not in plain}
    _check_head(stored, wanted, folder / HEAD)
    placed = {name: tensor.to(device, dtype if tensor.is_floating_point() else None) for name, tensor in stored.items()}
    model.load_state_dict(placed, strict=False, assign=True)
    if merge:
        merge_adapters(encoder)
    tokenizer = load_tokenizer(folder, encoder.config)
    return LoadedTask(model=model, tokenizer=tokenizer, max_len=file.max_len, adapter=file.adapter)


def is_task_folder(path: str | Path) -> bool:
    """Whether a folder holds a model with the head of a task, itself or inside, as fine-tuning leaves it."""
    return (model_folder(path) / TASK).is_file()


def model_folder(path: str | Path) -> Path:
    """The model folder that `path` means: itself, or the `model` inside what pretrain or finetune wrote.

    Raises:
        InputError: a run or a fine-tuning that has not come to its model yet.
    """
    path = Path(path)
    inner = standing(path / "model")
    if (standing(path) / CONFIG).is_file():
        return path
    if (inner / CONFIG).is_file():
        return inner
    for record, command in (("finetune.json", "finetune"), ("run.json", "pretrain --resume")):
        if (path / record).is_file():
            raise InputError(f"{path}: not finished, it has no model yet: go on with terrazzo {command} --out {path}")
    return path


def model_fingerprint(model: Path) -> str:
    """A hash of a model folder's weights, architecture, tokenizer and task (its classes, threshold, length)."""
    digest, named = hashlib.sha256(), (CONFIG, "tokenizer.json", "vocab.txt", TASK)
    for path in sorted(model.iterdir()):
        if path.suffix in (".safetensors", ".bin") or path.name in named:
            with open(path, "rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _read_task(file: Path) -> TaskFile:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: does not parse: {error}; copy the folder again") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else type(values).__name__
        raise InputError(f"{file}: format is {found!r}, not {FORMAT!r}: another version of terrazzo wrote it")
    if isinstance(values.get("adapter"), dict):
        values["adapter"] = {"kind": "lora", **values["adapter"]}
    return from_dict(TaskFile, values, str(file))


def _read_head(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise InputError(f"{file}: missing, so the folder is not whole: copy it again")
    try:
        with safe_open(file, framework="pt") as stored:
            tensors, metadata = {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata()  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: truncated or damaged ({error}); copy it again") from None
    return from_stored(tensors, metadata, file)


def _check_head(stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor], file: Path) -> None:
    wrong = [f"lacks {name}" for name in wanted if name not in stored]
    wrong += [f"has unknown {name}" for name in stored if name not in wanted]
    wrong += [
        f"{name} is {tuple(stored[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in stored and stored[name].shape != tensor.shape
    ]
    if wrong:
        shown = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise InputError(f"{file}: does not fit its task.json: {shown}; the two files are of different models")
