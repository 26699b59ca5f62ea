"""Matrices of few bits an entry: how they lie in a safetensors file, and the way back to floats.

A file that holds some says which in its metadata; of a packed matrix NAME it has NAME.codes, a stream of bits, and
NAME.grid, the step and the lowest value of every group. A group is a run of neighbouring entries of one row.

Shapes: O rows, I columns, G groups of a row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from terrazzo.errors import InputError

FORMAT = "terrazzo-packed-1"
#: The file that takes the place of model.safetensors: under a name of its own, no other library reads it as floats.
PACKED_WEIGHTS = "model.packed.safetensors"
_KEY = "terrazzo"
_CODES, _GRID = ".codes", ".grid"
_MEND = "copy the folder again"
_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.uint8: "U8"}


@dataclass(frozen=True)
class PackedTensor:
    """A matrix whose entries are `lowest + step * code` of their group, computed in fp32.

    Args:
        codes_OI: uint8, below 2 ** bits.
        grid_OG2: fp16, step and lowest value of each group.
        group: columns of a group; a row's last one may have fewer.
    """

    codes_OI: Tensor
    grid_OG2: Tensor
    bits: int
    group: int

    def values(self) -> Tensor:
        """The entries, fp32 `(O, I)`."""
        step_OI, lowest_OI = self.spread()
        return step_OI.mul_(self.codes_OI).add_(lowest_OI)  # a product of 11 and 8 bits is exact in fp32

    def spread(self) -> tuple[Tensor, Tensor]:
        """Step and lowest value of every entry, fp32 `(O, I)` each."""
        wide_OI2 = self.grid_OG2.float().repeat_interleave(self.group, dim=1)[:, : self.codes_OI.shape[1]]
        return wide_OI2[..., 0].contiguous(), wide_OI2[..., 1].contiguous()


@dataclass(frozen=True)
class PackedShape:
    """What is known of a packed matrix before its values are."""

    rows: int
    columns: int
    bits: int
    group: int

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return -(-self.columns // self.group)

    @property
    def code_bytes(self) -> int:
        """Bytes of the stream of codes."""
        return -(-self.rows * self.columns * self.bits // 8)

    @property
    def bytes(self) -> int:
        """Bytes of codes and grid."""
        return self.code_bytes + 4 * self.rows * self.groups

    def entries(self, name: str) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """The tensors that a file holds of it."""
        grid = (self.rows, self.groups, 2)
        return {f"{name}{_CODES}": (torch.uint8, (self.code_bytes,)), f"{name}{_GRID}": (torch.float16, grid)}


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Codes below 2 ** bits as a stream of bits, uint8: the first code first, each from its lowest bit on."""
    flat = codes.flatten().numpy()
    assert flat.dtype == np.uint8 and 1 <= bits <= 8, (flat.dtype, bits)
    assert bits == 8 or not len(flat) or int(flat.max()) < 1 << bits, f"a code does not fit in {bits} bits"
    if bits == 8:
        return torch.from_numpy(flat.copy())
    spelled = np.unpackbits(flat[:, None], axis=1, count=bits, bitorder="little")
    return torch.from_numpy(np.packbits(spelled, bitorder="little"))


def unpack_codes(stream: Tensor, bits: int, count: int) -> Tensor:
    """The `count` codes of a stream, uint8: the inverse of `pack_codes`."""
    if bits == 8:
        return stream[:count].clone()
    spelled = np.unpackbits(stream.numpy(), count=count * bits, bitorder="little")
    return torch.from_numpy(np.packbits(spelled.reshape(count, bits), axis=1, bitorder="little")[:, 0])


def to_stored(
    packed: Mapping[str, PackedTensor], plain: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file that holds packed matrices and plain tensors, and its metadata."""
    stored = dict(plain)
    for name, tensor in packed.items():
        stored[f"{name}{_CODES}"] = pack_codes(tensor.codes_OI, tensor.bits)
        stored[f"{name}{_GRID}"] = tensor.grid_OG2.contiguous()
    return stored, metadata_of({name: shape_of(tensor) for name, tensor in packed.items()})


def shape_of(tensor: PackedTensor) -> PackedShape:
    """Its shape, bits and group."""
    rows, columns = tensor.codes_OI.shape
    return PackedShape(rows, columns, tensor.bits, tensor.group)


def metadata_of(shapes: Mapping[str, PackedShape]) -> dict[str, str]:
    """What a file says of itself."""
    listed = {name: [s.rows, s.columns, s.bits, s.group] for name, s in sorted(shapes.items())}
    return {_KEY: json.dumps({"format": FORMAT, "packed": listed}, separators=(",", ":"))}


def from_stored(stored: dict[str, Tensor], metadata: Mapping[str, str] | None, file: Path) -> dict[str, Tensor]:
    """The tensors of a file with the packed ones as floats, all in fp32; of any other file they are as they were.

    Raises:
        InputError: the metadata and the tensors do not fit together.
    """
    if _KEY not in (metadata or {}):
        return stored
    assert metadata is not None
    shapes = _shapes(metadata[_KEY], file)
    plain = dict(stored)
    unpacked: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        parts = []
        for key, (dtype, size) in shape.entries(name).items():
            tensor = plain.pop(key, None)
            if tensor is None or tensor.dtype != dtype or tuple(tensor.shape) != size:
                found = "missing" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"
                raise InputError(f"{file}: {key} is {found}, not {dtype} {size}: damaged; {_MEND}")
            parts.append(tensor)
        if not parts[1].isfinite().all():
            raise InputError(f"{file}: {name}{_GRID} holds numbers that are not finite: damaged; {_MEND}")
        codes_OI = unpack_codes(parts[0], shape.bits, shape.rows * shape.columns).view(shape.rows, shape.columns)
        unpacked[name] = PackedTensor(codes_OI, parts[1], shape.bits, shape.group).values()
    floats = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in plain.items()}
    return {**floats, **unpacked}


def _shapes(text: str, file: Path) -> dict[str, PackedShape]:
    try:
        values: Any = json.loads(text)
        found, listed = values["format"], values["packed"]
        shapes = {name: PackedShape(*map(int, four)) for name, four in listed.items()} if found == FORMAT else {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{file}: what it says of its packed matrices does not parse ({error!r}); {_MEND}") from None
    if found != FORMAT:
        raise InputError(
            f"{file}: its packed matrices are in format {found!r}, not {FORMAT!r}: read it with a newer terrazzo"
        )
    for name, shape in shapes.items():
        if not (1 <= shape.bits <= 8 and shape.group >= 1 and shape.rows >= 1 and shape.columns >= 1):
            raise InputError(f"{file}: {name} is said to be {shape}: damaged; {_MEND}")
    return shapes


def file_bytes(packed: Mapping[str, PackedShape], plain: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> int:
    """The size of the file that `to_stored` describes, without its values.

    Reference: the safetensors format: 8 bytes, a header of compact JSON padded to a multiple of 8, the tensors.
    """
    entries = dict(plain)
    for name, shape in packed.items():
        entries |= shape.entries(name)
    header: dict[str, Any] = {"__metadata__": metadata_of(packed)}
    offset = 0
    for name, (dtype, size) in sorted(entries.items(), key=lambda item: (-item[1][0].itemsize, item[0])):
        end = offset + dtype.itemsize * math.prod(size)
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(size), "data_offsets": [offset, end]}
        offset = end
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-length // 8) * 8 + offset
