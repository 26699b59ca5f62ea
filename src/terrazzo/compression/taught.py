"""What a teacher said of each document, kept, so that it is asked once however often the rows are seen.

Shapes: T packed tokens, L tokens of a document, C outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from terrazzo.compression.distill import Taps
from terrazzo.packed import Packed
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.regression import RegressionTask
from terrazzo.tasks.task import Task


@dataclass(frozen=True)
class _Said:
    """Of one document, in fp16: outputs `(C,)`, and for each block hidden states `(L, D)` and projections."""

    outputs_C: Tensor
    hidden: dict[int, Tensor]
    qkv: dict[int, Tensor]

    @property
    def bytes(self) -> int:
        return sum(one.nbytes for one in (self.outputs_C, *self.hidden.values(), *self.qkv.values()))


class Taught:
    """A memory of a teacher without dropout, whose answer to a document does not depend on its neighbours.

    Args:
        task: of the teacher; where a document has not one row of outputs, nothing is kept.
        most: bytes, beyond which no further documents are kept.
    """

    def __init__(self, task: Task, most: int) -> None:
        self.most = most if isinstance(task, (LabelTask, RegressionTask)) and task.pooling == "mean" else 0
        self.known: dict[bytes, _Said] = {}
        self.bytes = 0

    def recall(self, batch: Packed) -> tuple[Tensor, Taps] | None:
        """What was said of a batch's documents; None where one of them is not known."""
        if not self.known:
            return None
        said = [self.known.get(key) for key in _keys(batch)]
        found = [one for one in said if one is not None]
        if len(found) < len(said):
            return None
        taps = Taps(
            hidden={layer: torch.cat([one.hidden[layer] for one in found]).float() for layer in found[0].hidden},
            qkv={layer: torch.cat([one.qkv[layer] for one in found]).float() for layer in found[0].qkv},
        )
        return torch.stack([one.outputs_C for one in found]).float(), taps

    def keep(self, batch: Packed, outputs_BC: Tensor, taps: Taps) -> None:
        """Keep what was said of a batch's documents, as far as there is room; on a CPU alone."""
        if self.bytes >= self.most or batch.device.type != "cpu":
            return
        ends = batch.cu_seqlens.tolist()
        for index, key in enumerate(_keys(batch)):
            part = slice(ends[index], ends[index + 1])
            said = _Said(
                outputs_BC[index].half(),
                {layer: x_TD[part].half() for layer, x_TD in taps.hidden.items()},
                {layer: x_T3D[part].half() for layer, x_T3D in taps.qkv.items()},
            )
            if key not in self.known and self.bytes + said.bytes <= self.most:
                self.known[key] = said
                self.bytes += said.bytes


def _keys(batch: Packed) -> list[bytes]:
    """A document's tokens and segments, which are all that its answer depends on."""
    ends, tokens_T, types_T = batch.cu_seqlens.tolist(), batch.tokens_T.numpy(force=True), batch.token_types_T
    segments_T = None if types_T is None else types_T.numpy(force=True)
    keys = []
    for first, last in zip(ends, ends[1:], strict=False):
        segments = b"" if segments_T is None else segments_T[first:last].tobytes()
        keys.append(tokens_T[first:last].tobytes() + b"|" + segments)
    return keys
