"""The model folder: config.json, model.safetensors, tokenizer.json, terrazzo.json."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from terrazzo.checkpoint.atomic import RECORD, atomic_folder, standing
from terrazzo.checkpoint.choice import format_of, writable
from terrazzo.checkpoint.empty import empty_model
from terrazzo.checkpoint.formats import Format
from terrazzo.checkpoint.packing import PACKED_WEIGHTS, PackedTensor
from terrazzo.checkpoint.tensors import (
    gather,
    plain_names,
    read_tensors,
    scatter,
    scatter_packed,
    write_tensors,
)
from terrazzo.checkpoint.tokenizer import (
    TOKENIZER,
    read_tokenizer,
    refuse_larger_vocabulary,
    special_ids,
    tokenizer_config,
)
from terrazzo.config import to_dict
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, EncoderConfig, MaskedLM
from terrazzo.provenance import provenance as current_provenance

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = "terrazzo-model-1"


def save_model(
    path: str | Path,
    model: MaskedLM | Encoder,
    tokenizer_file: str | Path | None = None,
    provenance: Mapping[str, Any] | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a model folder whole: under a temporary name, flushed to disk, renamed.

    BERT, RoBERTa and ModernBERT shapes are written in those formats, which plain transformers opens; every other shape
    in our own, which transformers opens after `import terrazzo.hf`.

    Args:
        path: the folder; an older model of that name is replaced in one step.
        tokenizer_file: a tokenizer.json to copy beside the weights.
        provenance: what terrazzo.json says beyond commit, versions and hardware: run config, data fingerprint, metrics.
        state: the full tensors, where those of `model` are sharded over processes.

    Raises:
        InputError: `path` holds something else, or the tokenizer has ids that the model has not.
        OSError: the disk is full or cannot be written; nothing of the new folder remains.
    """
    with atomic_folder(path) as folder:
        write_model(folder, model, tokenizer_file, provenance, state)
    return Path(path)


def write_model(
    folder: Path,
    model: MaskedLM | Encoder,
    tokenizer_file: str | Path | None = None,
    provenance: Mapping[str, Any] | None = None,
    state: Mapping[str, Tensor] | None = None,
    packed: Mapping[str, PackedTensor] | None = None,
) -> None:
    """The files of `save_model` in an existing folder, for those who write more into it inside `atomic_folder`.

    Args:
        packed: matrices of few bits by their names in `model`; the file of weights then has a name of its own.
    """
    assert isinstance(model, (MaskedLM, Encoder)), f"unwrap the model first: {type(model)}"
    with_head = isinstance(model, MaskedLM)
    state = model.state_dict() if state is None else state
    named = state if with_head else {f"encoder.{name}": tensor for name, tensor in state.items()}
    special: dict[str, int] = {}
    if tokenizer_file is not None:
        tokenizer = read_tokenizer(Path(tokenizer_file))
        refuse_larger_vocabulary(tokenizer, model.config.vocab_size, Path(tokenizer_file))
        special = special_ids(tokenizer)
        shutil.copyfile(tokenizer_file, folder / TOKENIZER)
        _write_json(folder / "tokenizer_config.json", tokenizer_config(tokenizer, model.config))
    layout, values = writable(model.config, special)
    few = {name if with_head else f"encoder.{name}": tensor for name, tensor in (packed or {}).items()}
    plain = {name: tensor for name, tensor in named.items() if name not in few}
    stored = scatter(plain, layout, model.config.vocab_size, with_head)
    dtype = "float32" if packed else str(next(iter(stored.values())).dtype).removeprefix("torch.")
    architecture = layout.masked_lm_class if with_head else layout.encoder_class
    _write_json(folder / CONFIG, {"architectures": [architecture], **values, "dtype": dtype})
    file = folder / (WEIGHTS if packed is None else PACKED_WEIGHTS)
    parts = None if packed is None else scatter_packed(few, layout, model.config.vocab_size, with_head)
    write_tensors(stored, file, parts)
    shutil.copymode(folder / CONFIG, file)
    _write_json(folder / RECORD, {"format": FORMAT, **current_provenance(), **to_dict(provenance or {})})


def load_config(path: str | Path) -> EncoderConfig:
    """The architecture of a model folder, ours or a published one.

    Raises:
        InputError: not a model folder, an unknown `model_type`, or a field that cannot be represented.
    """
    return _read_config(standing(path))[1]


def load_model(
    path: str | Path,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = torch.float32,
    backend: str | None = None,
) -> MaskedLM | Encoder:
    """Open a model folder, ours or a published one (BERT, RoBERTa, ModernBERT and their namesakes, MosaicBERT).

    Tensors stay memory-mapped where nothing has to be stacked, padded, converted or moved; writing to them changes this
    process's memory and never the file. The model is in training mode, as `torch.nn.Module` is born.

    Args:
        dtype: of the parameters; None keeps the file's.
        backend: attention backend by name; None takes the device's default.

    Returns:
        a `MaskedLM` where the folder has the masked-language-model head, else an `Encoder`. Poolers and the heads of
        fine-tuned tasks are left out.

    Raises:
        InputError: not a model folder, another architecture, a damaged file, or tensors that do not fit; each by name.
    """
    folder = standing(path)
    layout, config = _read_config(folder)
    stored, source = read_tensors(folder)
    plain = plain_names(stored, layout, source)
    with_head = _holds_head(plain, layout)
    model = empty_model(config, with_head, backend)
    prefix = "" if with_head else "encoder."
    expected = {prefix + name: tensor.shape for name, tensor in model.state_dict().items()}
    state = gather(plain, layout, expected, config.vocab_size, source)
    placed = {name.removeprefix(prefix): tensor.to(device, dtype) for name, tensor in state.items()}
    model.load_state_dict(placed, assign=True)
    return model


def has_masked_lm_head(path: str | Path) -> bool:
    """Whether `load_model` would give a `MaskedLM`, told by the names of the tensors alone.

    Raises:
        InputError: as `load_model`.
    """
    folder = standing(path)
    layout, _ = _read_config(folder)
    stored, source = read_tensors(folder)
    return _holds_head(plain_names(stored, layout, source), layout)


def _holds_head(plain: Mapping[str, Tensor], layout: Format) -> bool:
    head_names = {part for name in ("head.dense.weight", "head.bias") for part in layout.parts(name)}
    return bool(head_names & set(plain))


def _read_config(folder: Path) -> tuple[Format, EncoderConfig]:
    values, source = _config_values(folder), str(folder / CONFIG)
    layout = format_of(values, source)
    return layout, layout.config(values, source)


def _config_values(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    if not folder.is_dir():
        mend = (
            "give the path of a model folder; a published one is downloaded first: hf download NAME --local-dir FOLDER"
        )
        raise InputError(f"{folder}: no such folder; {mend}")
    if not file.is_file():
        inner = f"; this is a run, its model is {folder / 'model'}" if (folder / "model" / CONFIG).is_file() else ""
        raise InputError(f"{folder}: not a model folder: it has no {CONFIG}{inner}")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file}: does not parse: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{file}: is not a JSON object")
    return values


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
