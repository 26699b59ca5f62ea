"""The endless training stream: which pieces step t takes, and which rank and micro-batch gets each of them.

Nothing here has a state. Position i of the stream is piece `permute(i mod P)` of epoch `i div P`, for P pieces, so any
step is reached in O(1), and every rank computes the same plan without a word to the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from terrazzo.data.corpus import SpecialTokens, Split
from terrazzo.data.keyed import derive, permute
from terrazzo.data.packing import balance, loads, serpentine
from terrazzo.data.pieces import Pieces
from terrazzo.errors import InputError
from terrazzo.packed import Packed


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """The pieces of one optimizer step, in stream order.

    Args:
        pieces: int64 `(n,)` numbers of the pieces.
        epochs: int64 `(n,)` pass over the data that each belongs to.
        lengths: int64 `(n,)` tokens of each, special tokens included.
    """

    pieces: np.ndarray
    epochs: np.ndarray
    lengths: np.ndarray

    @property
    def num_tokens(self) -> int:
        """Tokens of the step over all ranks, special tokens included."""
        return int(self.lengths.sum())

    def deal(self, world_size: int, micro_tokens: int) -> list[list[np.ndarray]]:
        """Share the pieces out, longest first, so that ranks and micro-batches hold nearly the same number of tokens.

        Every rank gets the same number of micro-batches, the fewest for which none exceeds `micro_tokens`, so that
        ranks stay in lockstep.

        Returns:
            For each rank, for each of its micro-batches, int64 indices into `pieces`, longest piece first.

        Raises:
            InputError: a piece exceeds `micro_tokens`, or some rank would have nothing to do (see `check_deal`).
        """
        check_deal(len(self.pieces), int(self.lengths.max()), world_size, micro_tokens)
        micro_batches = -(-self.num_tokens // (world_size * micro_tokens))
        while True:
            bins = world_size * micro_batches
            assignment = balance(self.lengths, bins)
            totals = loads(self.lengths, assignment, bins)
            if totals.max() <= micro_tokens:
                break
            micro_batches += 1
        by_bin = np.lexsort((-self.lengths, assignment))
        parts = np.split(by_bin, np.cumsum(np.bincount(assignment, minlength=bins))[:-1])
        owners = serpentine(totals, world_size)
        return [[parts[bin_] for bin_ in np.flatnonzero(owners == rank)] for rank in range(world_size)]


def check_deal(num_pieces: int, longest: int, world_size: int, micro_tokens: int) -> None:
    """Refuse, before training, what could leave a piece without a micro-batch or a rank without a piece.

    Raises:
        InputError: naming the sizes and the mend.
    """
    if longest > micro_tokens:
        raise InputError(
            f"micro_tokens {micro_tokens} does not hold a piece of {longest} tokens: "
            f"raise micro_tokens to at least {longest}, or lower max_len"
        )
    # With room for two pieces in each micro-batch, or equal shares, dealing never runs out of pieces.
    if num_pieces < world_size or (num_pieces % world_size and micro_tokens < 2 * longest):
        raise InputError(
            f"{num_pieces} pieces a step do not keep {world_size} ranks busy with micro_tokens {micro_tokens}: "
            f"use a multiple of {world_size} pieces a step, or at least {world_size} with micro_tokens {2 * longest}"
        )


def shuffled(t: int, per_step: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of `count` items step `t` takes, and in which pass over them: a keyed shuffle that is another each epoch.

    Returns:
        int64 `(per_step,)` items and epochs; the last step of an epoch takes its rest from the next.
    """
    first = t * per_step
    epochs, offsets = np.divmod(np.arange(first, first + per_step), count)
    items = np.empty_like(offsets)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        own = epochs == epoch
        items[own] = permute(offsets[own], count, derive(seed, "order", epoch))
    return items, epochs


class StepSource(Protocol):
    """What a loader reads: steps of numbered pieces.

    Args:
        seed: of the order and of what is drawn.
        longest: tokens of the longest piece.
    """

    pieces_per_step: int
    seed: int

    @property
    def longest(self) -> int: ...

    def step(self, t: int) -> StepPlan:
        """The pieces of step `t`, from 0; the same cost for every `t`."""
        ...

    def pack(self, pieces_B: np.ndarray, epoch_B: np.ndarray) -> Packed:
        """These pieces as one batch, in the given order."""
        ...


class Stream:
    """The pieces of a split in a shuffled order that differs from epoch to epoch, cut into steps.

    Args:
        split: the documents.
        special: ids of the tokens around each piece.
        max_len: longest piece, special tokens included.
        pieces_per_step: pieces of one optimizer step, over all ranks.
        seed: of the order, and of the masks that objectives draw.

    Raises:
        InputError: the split has fewer pieces than one step takes.
    """

    def __init__(self, split: Split, special: SpecialTokens, *, max_len: int, pieces_per_step: int, seed: int) -> None:
        if pieces_per_step < 1:
            raise InputError(f"pieces_per_step must be at least 1, got {pieces_per_step}")
        self.pieces = Pieces(split, special, max_len)
        self.pieces_per_step, self.seed = pieces_per_step, seed
        if len(self.pieces) < pieces_per_step:
            raise InputError(
                f"the training split has {len(self.pieces)} pieces of at most {max_len} tokens, "
                f"{self.pieces.num_tokens} tokens in all, but one step takes {pieces_per_step} pieces: "
                f"make the batch at most {self.pieces.num_tokens} tokens, or prepare more text"
            )

    def step(self, t: int) -> StepPlan:
        """The pieces of step `t`, from 0; the same cost for every `t`."""
        pieces, epochs = shuffled(t, self.pieces_per_step, len(self.pieces), self.seed)
        return StepPlan(pieces=pieces, epochs=epochs, lengths=self.pieces.lengths(pieces))

    @property
    def longest(self) -> int:
        """Tokens of the longest piece, special tokens included."""
        return self.pieces.longest

    def pack(self, pieces_B: np.ndarray, epoch_B: np.ndarray) -> Packed:
        """These pieces as one batch, in the given order."""
        return self.pieces.pack(pieces_B, epoch_B)

    def documents(self, t: int) -> np.ndarray:
        """Sorted indices of the documents that step `t` reads, to name them when something goes wrong."""
        return np.unique(self.pieces.locate(self.step(t).pieces)[0])


def pieces_for_tokens(split: Split, special: SpecialTokens, max_len: int, batch_tokens: int) -> int:
    """Pieces a step for which a step has `batch_tokens` tokens on average, special tokens included; at least 1."""
    pieces = Pieces(split, special, max_len)
    return max(1, round(batch_tokens * len(pieces) / max(pieces.num_tokens, 1)))
