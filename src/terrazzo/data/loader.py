"""Steps of the stream as packed batches of one rank, read ahead by threads; fixed batches for evaluation."""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import numpy as np

from terrazzo.data.corpus import SpecialTokens, Split
from terrazzo.data.keyed import derive, permute
from terrazzo.data.packing import best_fit
from terrazzo.data.pieces import Pieces
from terrazzo.data.stream import StepSource, check_deal
from terrazzo.errors import InputError
from terrazzo.packed import Packed


class Corrupter(Protocol):
    """What a loader needs of an objective: the host side of it."""

    def corrupt(self, batch: Packed, seed: int, *, evaluation: bool = False) -> Packed:
        """Draw what is to be predicted, keyed by `seed` and the batch's document identities and epochs."""
        ...


@dataclass(frozen=True, kw_only=True)
class StepBatches:
    """What one rank trains on in one step.

    Args:
        step: its number, from 0.
        batches: the micro-batches of this rank.
        num_tokens: tokens of the step over all ranks, special tokens included.
    """

    step: int
    batches: list[Packed]
    num_tokens: int

    @property
    def weight(self) -> int:
        """Predictions of this rank: masked tokens, labelled tokens or documents."""
        return sum(map(num_predictions, self.batches))


def num_predictions(batch: Packed) -> int:
    """What the loss of a batch is a sum over: the documents where they have labels, else the tokens at `masked_M`."""
    return batch.num_documents if batch.masked_M is None or batch.labels_B is not None else batch.masked_M.numel()


class Loader:
    """Endless iterator over the steps of a stream, for one rank.

    Threads plan and read ahead. The objective corrupts a step only when it is asked for, in the caller's thread, so a
    scheduled attribute such as the mask rate takes effect at exactly the step for which it is set.

    Args:
        stream: what every step consists of.
        objective: draws the masks; its `corrupt` must depend on seed, document identity and epoch alone.
        rank, world_size: which share of each step this loader yields.
        micro_tokens: most tokens of one micro-batch.
        workers: threads that read ahead, two steps each; 0 reads when asked.
        start_step: first step that is yielded.

    Raises:
        InputError: the step cannot be dealt to `world_size` ranks in micro-batches of `micro_tokens`.
    """

    def __init__(
        self,
        stream: StepSource,
        objective: Corrupter,
        *,
        rank: int = 0,
        world_size: int = 1,
        micro_tokens: int,
        workers: int = 1,
        start_step: int = 0,
    ) -> None:
        assert 0 <= rank < world_size, (rank, world_size)
        check_deal(stream.pieces_per_step, stream.longest, world_size, micro_tokens)
        self.stream, self.objective = stream, objective
        self.rank, self.world_size, self.micro_tokens = rank, world_size, micro_tokens
        self._numbers = itertools.count(start_step)
        self._reads: deque[Future[StepBatches]] = deque()
        self._look_ahead = 2 * workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="terrazzo-loader") if workers else None
        self._closed = False

    def __iter__(self) -> Iterator[StepBatches]:
        return self

    def __next__(self) -> StepBatches:
        if self._closed:
            raise StopIteration
        try:
            step = self._read_ahead(self._pool) if self._pool else self._read(next(self._numbers))
        except BaseException:
            self.close()
            raise
        batches = [self.objective.corrupt(batch, self.stream.seed) for batch in step.batches]
        return StepBatches(step=step.step, batches=batches, num_tokens=step.num_tokens)

    def close(self) -> None:
        """Stop reading ahead and wait for the threads to end; later `next` calls end the iteration."""
        self._closed = True
        self._reads.clear()
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_ahead(self, pool: ThreadPoolExecutor) -> StepBatches:
        while len(self._reads) < self._look_ahead:
            self._reads.append(pool.submit(self._read, next(self._numbers)))
        return self._reads.popleft().result()

    def _read(self, t: int) -> StepBatches:
        try:
            plan = self.stream.step(t)
            shares = plan.deal(self.world_size, self.micro_tokens)[self.rank]
            batches = [self.stream.pack(plan.pieces[share], plan.epochs[share]) for share in shares]
        except Exception as error:
            error.add_note(f"in step {t} of the training stream")
            raise
        return StepBatches(step=t, batches=batches, num_tokens=plan.num_tokens)


def evaluation_batches(
    split: Split,
    special: SpecialTokens,
    *,
    max_len: int,
    objective: Corrupter,
    micro_tokens: int,
    max_tokens: int | None = None,
    seed: int = 0,
) -> list[Packed]:
    """A fixed sample of a split with fixed masks: the same batches at every evaluation, on every rank.

    Args:
        split: usually the held-out one.
        special: ids of the tokens around each piece.
        max_len: longest piece, special tokens included.
        objective: its `corrupt(..., evaluation=True)` draws the masks, as in epoch 0.
        micro_tokens: most tokens of one batch.
        max_tokens: the sample is the longest shuffled prefix within it, at least one piece; None takes all.
        seed: of sample and masks.

    Raises:
        InputError: the split is empty, or a piece exceeds `micro_tokens`.
    """
    pieces = Pieces(split, special, max_len)
    if not len(pieces):
        raise InputError("the held-out split is empty: prepare the data again with a larger held-out share")
    check_deal(len(pieces), pieces.longest, 1, micro_tokens)
    shortest = 3
    most = len(pieces) if max_tokens is None else min(len(pieces), max_tokens // shortest + 1)
    sample = permute(np.arange(most), len(pieces), derive(seed, "evaluation", "order"))
    if max_tokens is not None:
        within = int(np.searchsorted(np.cumsum(pieces.lengths(sample)), max_tokens, side="right"))
        sample = sample[: max(1, within)]
    bins = best_fit(pieces.lengths(sample), micro_tokens)
    packed = (pieces.pack(sample[bin_], np.zeros(len(bin_), dtype=np.int64)) for bin_ in bins)
    return [objective.corrupt(batch, derive(seed, "evaluation", "mask"), evaluation=True) for batch in packed]


def token_hash(steps: Iterable[StepBatches]) -> str:
    """SHA-256 of what is trained on: per step each piece's number, epoch, tokens, masked positions and labels.

    The pieces of a step count in the order of epoch and number, so that the hash over the steps of all ranks does not
    depend on how many there are, nor on micro-batches, workers or the order of `steps`.
    """
    rows = sorted((step.step, *row) for step in steps for batch in step.batches for row in _piece_rows(batch))
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def _piece_rows(batch: Packed) -> Iterator[tuple[int, int, str]]:
    assert batch.documents_B is not None and batch.epoch_B is not None
    ends = np.cumsum(batch.lengths)
    tokens_T = batch.tokens_T.numpy().astype("<i8")
    masked_M = np.empty(0, np.int64) if batch.masked_M is None else batch.masked_M.numpy()
    labels_M = np.empty(0, np.int64) if batch.labels_M is None else batch.labels_M.numpy()
    for piece, epoch, stop, length in zip(batch.documents_B, batch.epoch_B, ends, batch.lengths, strict=True):
        start = stop - length
        own = (masked_M >= start) & (masked_M < stop)
        arrays = (tokens_T[start:stop], masked_M[own] - start, labels_M[own])
        digest = hashlib.sha256(b"|".join(np.ascontiguousarray(a, dtype="<i8").tobytes() for a in arrays))
        yield int(epoch), int(piece), digest.hexdigest()
