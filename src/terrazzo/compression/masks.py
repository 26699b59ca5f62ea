"""Which weights are zero for good: masks of an encoder's matrices, and the hooks that hold them in training.

Shapes: O rows and I columns of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from terrazzo.checkpoint.tensors import write_tensors
from terrazzo.compression.sites import matrices
from terrazzo.errors import InputError
from terrazzo.nn import Encoder
from terrazzo.optim.roles import stacks

FILE = "masks.safetensors"


def single_matrices(encoder: Encoder, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Every single matrix of the blocks as a view of its weights, without gradient.

    A weight that holds several, such as Q, K and V, gives NAME:0, NAME:1 and so on, first rows first; one without
    entries gives nothing.

    Args:
        names: of the weights, as in `matrices`; None for all.
    """
    weights, counts = matrices(encoder), stacks(encoder)
    views: dict[str, Tensor] = {}
    for name in weights if names is None else names:
        parts = weights[name].detach().chunk(counts[name])
        keys = [name] if len(parts) == 1 else [f"{name}:{index}" for index in range(len(parts))]
        views.update({key: part for key, part in zip(keys, parts, strict=True) if part.numel()})
    return views


def joined(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of single matrices put together again under their weights' names."""
    groups: dict[str, list[Tensor]] = {}
    for name, tensor in parts.items():
        groups.setdefault(name.partition(":")[0], []).append(tensor)
    return {name: tensors[0] if len(tensors) == 1 else torch.cat(tensors) for name, tensors in groups.items()}


def zeros_of(encoder: Encoder) -> dict[str, Tensor]:
    """What is kept in an encoder that is sparse already, by single matrix; one of zeros alone counts as dense."""
    found = {name: view != 0 for name, view in single_matrices(encoder).items()}
    return {name: keep if keep.any() else torch.ones_like(keep) for name, keep in found.items()}


def sparsity(keep: Mapping[str, Tensor]) -> float:
    """Share of all entries that are not kept."""
    total = sum(mask.numel() for mask in keep.values())
    return 1 - sum(int(mask.sum()) for mask in keep.values()) / total if total else 0.0


class Masks:
    """Holds entries of an encoder's matrices at exactly zero, whatever trains it.

    Gradients are masked before they reach any optimizer. What decay, momentum or the mixing of a matrix's entries
    (Muon) still move is set back before each forward pass and before the state dict is read, so no output and no
    checkpoint ever sees it; `follow` sets it back right after each optimizer step, too.

    Args:
        keep: True where a weight may live, by single matrix (`single_matrices`); None keeps the zeros that are there.
    """

    def __init__(self, encoder: Encoder, keep: Mapping[str, Tensor] | None = None) -> None:
        self.encoder = encoder
        self.keep = zeros_of(encoder) if keep is None else dict(keep)
        self._whole: dict[str, Tensor] = {}
        self._handles: list[Any] = [
            encoder.register_forward_pre_hook(self._enforce_first),
            encoder.register_state_dict_pre_hook(self._enforce_first),
        ]
        for name, weight in matrices(encoder).items():
            if weight.requires_grad and weight.numel():
                self._handles.append(weight.register_hook(partial(self._masked, name)))
        self.set(self.keep)

    def set(self, keep: Mapping[str, Tensor]) -> None:
        """Take other masks, and put them into force at once.

        Raises:
            InputError: a mask of no matrix here, or of another shape.
        """
        views = single_matrices(self.encoder)
        for name, mask in keep.items():
            if name not in views or views[name].shape != mask.shape:
                here = f"{tuple(views[name].shape)}" if name in views else "nothing of that name"
                raise InputError(f"mask {name}: {tuple(mask.shape)}, the encoder has {here}: masks of another model")
        full = {name: torch.ones_like(view, dtype=torch.bool) for name, view in views.items()}
        self.keep = {name: keep.get(name, full[name]).to(view.device) for name, view in views.items()}
        self._whole = {name: mask for name, mask in joined(self.keep).items() if not mask.all()}
        self.enforce()

    @torch.no_grad()
    def enforce(self) -> None:
        """Set every masked weight to zero."""
        weights = matrices(self.encoder)
        for name, mask in self._whole.items():
            # Through .data, for a graph that is still to be differentiated does not depend on what was zero before.
            weights[name].data.mul_(mask)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Enforce the masks after each of its steps, too."""
        self._handles.append(optimizer.register_step_post_hook(self._enforce_first))

    def remove(self) -> None:
        """Let go of the encoder; its weights stay as they are."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @property
    def sparsity(self) -> float:
        """Share of the matrices' entries that are held at zero."""
        return sparsity(self.keep)

    @property
    def grain(self) -> float:
        """What one entry adds to the sparsity."""
        return 1 / max(1, sum(mask.numel() for mask in self.keep.values()))

    def save(self, folder: Path) -> None:
        """Write the masks into an existing folder, a bit an entry."""
        packed = {
            f"{name}|{mask.shape[0]}|{mask.shape[1]}": torch.from_numpy(np.packbits(mask.cpu().numpy()))
            for name, mask in self.keep.items()
        }
        write_tensors(packed, folder / FILE)

    def _enforce_first(self, *_: Any) -> None:
        self.enforce()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy of the encoder takes along; its hooks are copied with it, their handles are not."""
        return {**self.__dict__, "_handles": []}

    def _masked(self, name: str, grad: Tensor) -> Tensor:
        return grad * self._whole[name] if name in self._whole else grad


def read_masks(folder: Path) -> dict[str, Tensor]:
    """The masks that `Masks.save` wrote.

    Raises:
        InputError: the file is missing or damaged.
    """
    file, masks = folder / FILE, {}
    if not file.is_file():
        raise InputError(f"{file}: missing, so the checkpoint is not of a run that prunes")
    try:
        with safe_open(file, framework="pt") as stored:
            for key in stored.keys():  # noqa: SIM118
                name, rows, columns = key.split("|")
                bits = np.unpackbits(stored.get_tensor(key).numpy(), count=int(rows) * int(columns))
                masks[name] = torch.from_numpy(bits.astype(bool)).view(int(rows), int(columns))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{file}: damaged ({error}); go on from the checkpoint before") from None
    return masks
