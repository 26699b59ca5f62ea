"""Tensors of a model folder: read without copying, renamed, stacked and padded into ours, and the way back.

Shapes: V vocabulary, P padded vocabulary.
"""

from __future__ import annotations

import errno
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from terrazzo.checkpoint.formats import Format
from terrazzo.checkpoint.packing import PACKED_WEIGHTS, PackedTensor, from_stored, to_stored
from terrazzo.errors import InputError

#: Our tensors with a row for every token of the padded vocabulary.
VOCABULARY = ("encoder.embeddings.tokens.weight", "head.bias")
_COPY_AGAIN = "copy or download it again"


def read_tensors(folder: Path) -> tuple[dict[str, Tensor], Path]:
    """All tensors of a folder, memory-mapped where the file allows it, and the file that errors should name.

    Packed matrices are unpacked, and all floats of their file are in fp32.

    Raises:
        InputError: no weights, a missing shard, or a damaged file.
    """
    readers: tuple[tuple[str, Callable[[Path], dict[str, Tensor]]], ...] = (
        ("model.safetensors", read_safetensors),
        (PACKED_WEIGHTS, read_safetensors),
        ("pytorch_model.bin", _read_pickle),
    )
    for name, read in readers:
        file, index = folder / name, folder / f"{name}.index.json"
        if file.is_file():
            return read(file), file
        if index.is_file():
            shards = [read(folder / shard) for shard in _shards(index)]
            return {key: tensor for shard in shards for key, tensor in shard.items()}, index
    raise InputError(f"{folder}: no model.safetensors (nor its index, nor pytorch_model.bin): not a whole model folder")


def _shards(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{index}: not an index of shards ({error!r}); {_COPY_AGAIN}") from None
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise InputError(f"{index}: names the shard {name!r}, which is not in the folder; {_COPY_AGAIN}")
    return names


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """The tensors of one file, packed ones as floats.

    Raises:
        InputError: the file is damaged.
    """
    try:
        with safe_open(file, framework="pt") as stored:
            tensors, metadata = {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata()  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: truncated or damaged ({error}); {_COPY_AGAIN}") from None
    return from_stored(tensors, metadata, file)


def _read_pickle(file: Path) -> dict[str, Tensor]:
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError:
        mend = "it holds code or is damaged; use a model.safetensors of the same checkpoint"
        raise InputError(f"{file}: cannot be read as plain tensors: {mend}") from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise InputError(f"{file}: truncated or damaged ({error}); {_COPY_AGAIN}") from None
    if not isinstance(stored, dict) or not all(isinstance(tensor, Tensor) for tensor in stored.values()):
        raise InputError(f"{file}: holds something else than named tensors; use a model.safetensors")
    return stored


def write_tensors(tensors: dict[str, Tensor], file: Path, packed: Mapping[str, PackedTensor] | None = None) -> None:
    """Write a safetensors file that transformers accepts, or one with packed matrices beside the tensors.

    Raises:
        OSError: with the system's error number, which the library only spells out.
    """
    metadata = {"format": "pt"}
    if packed is not None:
        tensors, metadata = to_stored(packed, tensors)
    try:
        save_file(tensors, file, metadata=metadata)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number.group(1)) if number else errno.EIO, str(error), str(file)) from error


def plain_names(stored: Mapping[str, Tensor], layout: Format, source: Path) -> dict[str, Tensor]:
    """Stored tensors under the format's own names: no prefix, no old spellings, no repeated or foreign tensors.

    Raises:
        InputError: a decoder that is not the token embedding.
    """
    if not layout.published:
        return dict(stored)
    plain: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        name = name.removeprefix(layout.prefix)
        plain[re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))] = tensor
    for repeated, original in layout.tied.items():
        if repeated not in plain:
            continue
        tensor = plain.pop(repeated)
        if not torch.equal(plain.setdefault(original, tensor), tensor):
            raise InputError(f"{source}: {repeated} differs from {original}: an untied decoder cannot be represented")
    classifies = any(name.startswith("classifier.") for name in plain)
    foreign = f"{layout.ignored}|{layout.classifier_head}" if classifies else layout.ignored
    return {name: tensor for name, tensor in plain.items() if not re.match(foreign, name)}


def gather(
    stored: dict[str, Tensor], layout: Format, expected: Mapping[str, torch.Size], vocab_size: int, source: Path
) -> dict[str, Tensor]:
    """Our tensors out of the stored ones; nothing is copied but what must be stacked or padded.

    Raises:
        InputError: missing, unexpected or misshaped tensors, by their stored names.
    """
    wanted = {name: layout.parts(name) for name in expected}
    missing = [part for parts in wanted.values() for part in parts if part not in stored]
    unexpected = sorted(set(stored) - {part for parts in wanted.values() for part in parts})
    if missing or unexpected:
        kinds = (("lacks", missing), ("has unknown", unexpected))
        found = "; ".join(f"{kind} {_listed(names)}" for kind, names in kinds if names)
        raise InputError(f"{source}: does not fit its config.json: {found}; {_COPY_AGAIN}")
    misshaped = [
        f"{part} is {tuple(stored[part].shape)}, not {tuple(shape)}"
        for name, parts in wanted.items()
        for part, shape in _part_shapes(name, parts, expected[name], vocab_size, stored)
    ]
    if misshaped:
        raise InputError(f"{source}: does not fit its config.json: {_listed(misshaped)}; {_COPY_AGAIN}")
    return {name: _stack([stored[part] for part in parts], expected[name][0]) for name, parts in wanted.items()}


def scatter(state: Mapping[str, Tensor], layout: Format, vocab_size: int, with_head: bool) -> dict[str, Tensor]:
    """The stored tensors of our `state`: the inverse of `gather`, as views of the same memory."""
    stored: dict[str, Tensor] = {}
    for name, tensor in state.items():
        rows = tensor[:vocab_size] if layout.published and name in VOCABULARY else tensor
        parts = layout.parts(name)
        prefix = layout.prefix if with_head and name.startswith("encoder.") else ""
        for part, piece in zip(parts, rows.chunk(len(parts)), strict=True):
            stored[prefix + part] = piece.detach().contiguous()
    return stored


def scatter_packed(
    packed: Mapping[str, PackedTensor], layout: Format, vocab_size: int, with_head: bool
) -> dict[str, PackedTensor]:
    """The stored matrices of our packed ones: rows are divided and cut as `scatter` does it."""
    stored: dict[str, PackedTensor] = {}
    for name, tensor in packed.items():
        codes = scatter({name: tensor.codes_OI}, layout, vocab_size, with_head)
        grids = scatter({name: tensor.grid_OG2}, layout, vocab_size, with_head)
        stored |= {part: replace(tensor, codes_OI=codes[part], grid_OG2=grids[part]) for part in codes}
    return stored


def _part_shapes(
    name: str, parts: tuple[str, ...], whole: torch.Size, vocab_size: int, stored: Mapping[str, Tensor]
) -> list[tuple[str, list[int]]]:
    """The parts whose shape is wrong, with the right one; a vocabulary may come with some of its padding."""
    rows = vocab_size if name in VOCABULARY else whole[0] // len(parts)
    most = whole[0] if name in VOCABULARY else rows
    return [
        (part, [rows, *whole[1:]])
        for part in parts
        if stored[part].shape[1:] != whole[1:] or not rows <= sum(stored[part].shape[:1]) <= most
    ]


def _stack(parts: list[Tensor], rows: int) -> Tensor:
    tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
    if tensor.shape[0] == rows:
        return tensor
    padded = tensor.new_zeros(rows, *tensor.shape[1:])
    padded[: tensor.shape[0]] = tensor
    return padded


def _listed(names: list[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
