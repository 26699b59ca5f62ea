"""Second moments of per-example gradients, in blocks along the rows of a matrix, and their inverses.

Shapes: O rows and I columns of a matrix, N examples, K blocks, B entries of a block, G groups of a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from terrazzo.compression.gradients import GradientStream
from terrazzo.compression.greedy import greedy_prices
from terrazzo.errors import InputError

Method = Literal["auto", "direct", "woodbury"]
#: Blocks that are inverted at once in float64.
CHUNK = 2048
#: Blocks that are emptied at once, few enough that they stay in a processor's cache.
TRACED = 128


@dataclass(frozen=True)
class BlockLayout:
    """How the entries of a matrix lie in blocks of at most the size asked for, all of one width.

    Args:
        shape: rows and columns of the matrix.
        width: entries of a block; the last block of a line is filled up with zeros.
        across_rows: the whole matrix is one line; else every row is one.
    """

    shape: tuple[int, int]
    width: int
    across_rows: bool = False

    @classmethod
    def of(cls, shape: Sequence[int], block: int, multiple: int = 1, across_rows: bool = False) -> BlockLayout:
        """Lines cut into the fewest blocks of at most `block` entries, as evenly as multiples of `multiple` allow.

        Raises:
            InputError: `block` is not a positive multiple of `multiple`.
        """
        if block < 1 or block % multiple:
            raise InputError(f"block {block}: must be a positive multiple of {multiple}, the size of a group")
        rows, columns = shape
        line = rows * columns if across_rows else columns
        even = -(-line // max(1, -(-line // block)))
        return cls((rows, columns), max(multiple, -(-even // multiple) * multiple), across_rows)

    @property
    def num_blocks(self) -> int:
        rows, columns = self.shape
        return -(-rows * columns // self.width) if self.across_rows else rows * -(-columns // self.width)

    def cut(self, values: Tensor) -> Tensor:
        """`(..., O, I)` as `(..., K, B)`."""
        lines = values.flatten(-2).unsqueeze(-2) if self.across_rows else values
        padded = F.pad(lines, (0, -lines.shape[-1] % self.width))
        return padded.unflatten(-1, (-1, self.width)).flatten(-3, -2)

    def join(self, values_KB: Tensor) -> Tensor:
        """`(K, B)` as `(O, I)`: the inverse of `cut`."""
        rows, columns = self.shape
        if self.across_rows:
            return values_KB.flatten()[: rows * columns].view(rows, columns)
        return values_KB.reshape(rows, -1)[:, :columns]


def direct_inverse(sums_KBB: Tensor, count: int, damp: float) -> Tensor:
    """The inverse of damp I + sums / count, worked out in float64 a few blocks at a time, in place of `sums_KBB`.

    Raises:
        InputError: a block is singular in its precision.
    """
    for part in sums_KBB.split(CHUNK):
        full = part.double() / count
        full.diagonal(dim1=1, dim2=2).add_(damp)
        factors, failed = torch.linalg.cholesky_ex(full)
        if failed.any():
            raise InputError(f"damp {damp}: too small for float32 gradients of this size; raise it tenfold")
        part.copy_(torch.cholesky_inverse(factors))
    return sums_KBB


def woodbury_update(inverse_KBB: Tensor, grads_KNB: Tensor, count: int) -> Tensor:
    """The inverse of F + sum of g g' / count over N gradients, from that of F, in place.

    Reference: oBERT (arXiv 2203.07259), section 3.2, for one gradient; here for N at once through an N x N system.
    """
    for inverse, grads in zip(inverse_KBB.split(CHUNK), grads_KNB.split(CHUNK), strict=True):
        wide, grads = inverse.double(), grads.double()
        moved = wide @ grads.mT
        small = grads @ moved
        small.diagonal(dim1=1, dim2=2).add_(count)
        inverse.copy_(wide - moved @ torch.linalg.solve(small, moved.mT))
    return inverse_KBB


class BlockFisher:
    """The inverse of a matrix's empirical Fisher F = damp I + mean of g g', kept in blocks along its rows.

    It takes `4 * B` bytes for each weight. To second order the loss rises by dw' F dw / 2.

    Reference: oBERT (arXiv 2203.07259), section 3.
    """

    def __init__(self, inverse_KBB: Tensor, layout: BlockLayout) -> None:
        assert inverse_KBB.shape == (layout.num_blocks, layout.width, layout.width), inverse_KBB.shape
        self.inverse_KBB, self.layout = inverse_KBB, layout

    def diagonal(self) -> Tensor:
        """The diagonal of the inverse as the matrix's entries lie, `(O, I)`."""
        return self.layout.join(self.inverse_KBB.diagonal(dim1=1, dim2=2))

    def scores(self, weight_OI: Tensor, group: int = 1) -> Tensor:
        """What removing each entry would add to the loss, `(O, I)`; of a group of neighbours every entry says it.

        Reference: oBERT (arXiv 2203.07259), section 3.1: w_Q' (inverse_QQ)^-1 w_Q / 2.
        """
        if group == 1:
            return weight_OI.square() / (2 * self.diagonal())
        width = self.layout.width
        blocks = self.inverse_KBB.view(-1, width // group, group, width // group, group)
        own_KGQQ = blocks.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
        w_KGQ = self.layout.cut(weight_OI).unflatten(1, (-1, group))
        parts = zip(own_KGQQ.split(CHUNK), w_KGQ.split(CHUNK), strict=True)
        solved = [torch.linalg.solve(own.double(), w.double()) for own, w in parts]
        scores_KG = (w_KGQ * torch.cat(solved)).sum(-1).to(weight_OI.dtype) / 2
        return self.layout.join(scores_KG.repeat_interleave(group, dim=1))

    def greedy_scores(self, weight_OI: Tensor, group: int = 1, keep_OI: Tensor | None = None) -> Tensor:
        """What removing each entry, or group, adds to the loss once all that is cheaper in its block has gone.

        Every block is emptied step by step, with the update and the inverse that each removal leaves. Where a removal
        makes the next ones cheaper, all of them say their mean, so that one threshold finds the cheapest set.

        Args:
            keep_OI: what an earlier pruning left; the rest costs nothing.

        Reference: the traces of Optimal Brain Compression (arXiv 2208.11580), on oBERT's blocks.
        """
        w_KB = self.layout.cut(weight_OI)
        gone_KB = w_KB == 0 if keep_OI is None else ~self.layout.cut(keep_OI)
        traces = [
            greedy_prices(
                inverse.to(torch.float64, copy=True),
                w.to(torch.float64, copy=True),
                gone.unflatten(1, (-1, group)).all(2),
            )
            for inverse, w, gone in zip(
                *(whole.split(TRACED) for whole in (self.inverse_KBB, w_KB, gone_KB)), strict=True
            )
        ]
        scores_KG = torch.cat(traces).to(weight_OI.dtype)
        return self.layout.join(scores_KG.repeat_interleave(group, dim=1))

    def prune(self, weight_OI: Tensor, keep_OI: Tensor) -> tuple[Tensor, float]:
        """The weights with all entries outside `keep_OI` zero and the others moved to make up for them together.

        Solves for all removed entries P of a block at once: dw = -inverse_:P (inverse_PP)^-1 w_P. The sum of what each
        would ask for alone is another, worse step wherever a block loses more than one.

        Returns:
            the weights, and what the quadratic model says that they add to the loss.

        Reference: oBERT (arXiv 2203.07259), section 3.1.
        """
        w_KB, gone_KB = self.layout.cut(weight_OI), ~self.layout.cut(keep_OI)
        changed, cost = w_KB.clone(), 0.0
        for rows in (gone_KB & (w_KB != 0)).any(1).nonzero().flatten().split(CHUNK):
            inverse, gone = self.inverse_KBB[rows].double(), gone_KB[rows]
            w_P = w_KB[rows].double() * gone
            system = inverse * (gone[:, :, None] & gone[:, None, :])
            system.diagonal(dim1=1, dim2=2).add_((~gone).double())
            solved_P = torch.linalg.solve(system, w_P)
            cost += float((w_P * solved_P).sum()) / 2
            changed[rows] -= torch.einsum("kij,kj->ki", inverse, solved_P).to(changed.dtype)
        return self.layout.join(changed).masked_fill(~keep_OI, 0), cost


@dataclass(frozen=True)
class FisherOptions:
    """How a Fisher matrix is estimated.

    Args:
        block: most entries of a block.
        damp: added to the diagonal.
        multiple: block widths are multiples of it.
        across_rows: let blocks run over the ends of rows.
        method: "direct" sums and inverts once, in float64; "woodbury" keeps the inverse up to date; "auto" takes the
            latter where examples are too few to fill a block, whose sum float32 could not tell from singular.
        buffer: examples whose gradients are added at once.
    """

    block: int = 50
    damp: float = 1e-7
    multiple: int = 1
    across_rows: bool = False
    method: Method = "auto"
    buffer: int = 8

    def bytes(self, weight: Tensor) -> int:
        """Memory for one matrix while its Fisher is made: its blocks, and the gradients that wait to be added."""
        layout = BlockLayout.of(weight.shape, self.block, self.multiple, self.across_rows)
        entries = layout.num_blocks * layout.width
        return 4 * entries * (layout.width + self.buffer)


def block_fishers(
    weights: Mapping[str, Tensor],
    gradients: GradientStream,
    options: FisherOptions,
    keep: Mapping[str, Tensor] | None = None,
) -> dict[str, BlockFisher]:
    """The Fisher of every named matrix from one pass over the examples; entries outside `keep` have no gradient."""
    names = list(weights)
    layouts = {
        name: BlockLayout.of(weights[name].shape, options.block, options.multiple, options.across_rows)
        for name in names
    }
    woodbury = options.method == "woodbury" or (options.method == "auto" and len(gradients) <= options.block)
    blocks = {name: _begin(layouts[name], weights[name], options.damp if woodbury else None) for name in names}
    count = len(gradients)
    for batch in _buffered(gradients(names), options.buffer):
        for name in names:
            stacked_NOI = torch.stack([gradient[name] for gradient in batch])
            if keep is not None:
                stacked_NOI *= keep[name]
            grads_KNB = layouts[name].cut(stacked_NOI).transpose(0, 1)
            if woodbury:
                woodbury_update(blocks[name], grads_KNB, count)
            else:
                blocks[name].baddbmm_(grads_KNB.mT, grads_KNB)
    if not woodbury:
        for name in names:
            direct_inverse(blocks[name], count, options.damp)
    return {name: BlockFisher(blocks[name], layouts[name]) for name in names}


def _begin(layout: BlockLayout, weight: Tensor, damp: float | None) -> Tensor:
    blocks_KBB = weight.new_zeros(layout.num_blocks, layout.width, layout.width)
    if damp is not None:
        blocks_KBB.diagonal(dim1=1, dim2=2).fill_(1 / damp)
    return blocks_KBB


def _buffered(stream: Iterable[Mapping[str, Tensor]], size: int) -> Iterator[list[Mapping[str, Tensor]]]:
    batch: list[Mapping[str, Tensor]] = []
    for gradient in stream:
        batch.append(gradient)
        if len(batch) == size:
            yield batch
            batch.clear()  # not a new list: the one who took this holds on to it while the next fills
    if batch:
        yield batch
