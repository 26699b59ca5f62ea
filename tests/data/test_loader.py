"""The same stream for any number of ranks and workers, from any step on; workers fail loudly and end cleanly."""

import dataclasses
import itertools
import threading
import time

import numpy as np
import pytest
import torch

from terrazzo.data import loader
from terrazzo.data.corpus import SpecialTokens
from terrazzo.data.keyed import hash_tokens
from terrazzo.data.loader import Loader, StepBatches, evaluation_batches, token_hash
from terrazzo.data.stream import Stream
from terrazzo.errors import InputError
from terrazzo.packed import Packed

SPECIAL = SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4)


class MemorySplit:
    def __init__(self, num_documents: int = 50) -> None:
        draw = np.random.default_rng(0)
        lengths = np.clip(draw.lognormal(3.0, 0.8, num_documents), 1, None).astype(np.int32)
        self.documents = [draw.integers(5, 1000, n).astype(np.uint16) for n in lengths]
        self.lengths, self.num_documents = lengths, num_documents
        self.damaged: int | None = None

    def document(self, index: int) -> np.ndarray:
        if index == self.damaged:
            raise OSError("input/output error")
        return self.documents[index]

    def slices(self, documents: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
        return [self.document(i)[start:stop] for i, start, stop in zip(documents, starts, stops, strict=True)]


@dataclasses.dataclass
class HalfMask:
    """A stand-in objective: masks each token with probability `rate`, by document, epoch and position."""

    rate: float = 0.5
    evaluations: list[bool] = dataclasses.field(default_factory=list)

    def corrupt(self, batch: Packed, seed: int, *, evaluation: bool = False) -> Packed:
        self.evaluations.append(evaluation)
        hashes = hash_tokens(seed, batch.documents_B, batch.epoch_B, np.array(batch.lengths))
        chosen = torch.from_numpy(np.flatnonzero(hashes < np.uint64(int(self.rate * 2**64))))
        tokens = batch.tokens_T.clone()
        tokens[chosen] = 4
        return batch.replace(tokens_T=tokens, masked_M=chosen, labels_M=batch.tokens_T[chosen])


def stream_of(split: MemorySplit | None = None) -> Stream:
    return Stream(split or MemorySplit(), SPECIAL, max_len=32, pieces_per_step=24, seed=7)


def steps_of(stream: Stream, first: int, last: int, world_size: int = 1, workers: int = 0, micro: int = 200) -> list:
    found: list[StepBatches] = []
    for rank in range(world_size):
        options = {"rank": rank, "world_size": world_size, "micro_tokens": micro, "workers": workers}
        with Loader(stream, HalfMask(), start_step=first, **options) as steps:
            found += itertools.islice(steps, last - first)
    return found


@pytest.fixture(scope="module")
def reference() -> str:
    """Steps 3 to 20 (through the end of two epochs) of a single process, read without a worker."""
    return token_hash(steps_of(stream_of(), 3, 20))


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_stream_does_not_depend_on_ranks_and_workers(world_size: int, workers: int, reference: str) -> None:
    micro = 200 if world_size != 2 else 64
    steps = steps_of(stream_of(), 3, 20, world_size, workers, micro)
    assert token_hash(steps) == reference
    for t, own in itertools.groupby(sorted(steps, key=lambda s: s.step), key=lambda s: s.step):
        group = list(own)
        assert len({len(step.batches) for step in group}) == 1
        assert {sum(b.num_tokens for s in group for b in s.batches)} == {s.num_tokens for s in group}, t


def test_resuming_continues_the_stream(reference: str) -> None:
    assert token_hash(steps_of(stream_of(), 3, 11) + steps_of(stream_of(), 11, 20, world_size=2)) == reference


def test_the_hash_sees_tokens_masks_labels_and_steps() -> None:
    (step,) = steps_of(stream_of(), 0, 1)
    batch = step.batches[0]
    changed = [
        dataclasses.replace(step, step=1),
        dataclasses.replace(step, batches=[batch.replace(tokens_T=batch.tokens_T + 1), *step.batches[1:]]),
        dataclasses.replace(step, batches=[batch.replace(labels_M=batch.labels_M + 1), *step.batches[1:]]),
        dataclasses.replace(step, batches=[batch.replace(masked_M=batch.masked_M + 1), *step.batches[1:]]),
        dataclasses.replace(step, batches=[batch.replace(epoch_B=batch.epoch_B + 1), *step.batches[1:]]),
    ]
    assert len({token_hash([s]) for s in [step, *changed]}) == 6


def test_a_rate_set_between_steps_takes_effect_at_the_next_step_whatever_was_read_ahead() -> None:
    weights = []
    for workers in (0, 2):
        objective = HalfMask()
        with Loader(stream_of(), objective, micro_tokens=200, workers=workers) as steps:
            first = next(steps).weight
            objective.rate = 0.0
            weights.append((first, next(steps).weight))
    assert weights[0] == weights[1] and weights[0][0] > 0 and weights[0][1] == 0


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("terrazzo-loader")]


@pytest.mark.parametrize("workers", [0, 3])
def test_a_worker_that_fails_names_document_and_step_and_ends_the_loader(workers: int) -> None:
    split = MemorySplit()
    stream = stream_of(split)
    split.damaged = int(stream.documents(2)[0])
    failing = next(t for t in itertools.count() if split.damaged in stream.documents(t))
    steps = Loader(stream, HalfMask(), micro_tokens=200, workers=workers)
    for _ in range(failing):
        next(steps)
    with pytest.raises(OSError, match="input/output error") as caught:
        next(steps)
    assert f"of document {split.damaged}" in caught.value.__notes__[0]
    assert caught.value.__notes__[1] == f"in step {failing} of the training stream"
    assert list(steps) == [] and loader_threads() == []


def test_reading_ahead_is_bounded_and_closing_ends_the_threads() -> None:
    read: list[int] = []

    class Counting(MemorySplit):
        def document(self, index: int) -> np.ndarray:
            read.append(index)
            return super().document(index)

    steps = Loader(stream_of(Counting()), HalfMask(), micro_tokens=200, workers=2)
    next(steps)
    deadline = time.monotonic() + 5
    while len(read) < 4 * 24 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert len(read) == 4 * 24
    steps.close()
    assert list(steps) == [] and loader_threads() == []


def test_closing_drops_what_is_not_being_read(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, gate, started = stream_of(), threading.Event(), []
    plan = stream.step

    def gated(t: int) -> object:
        started.append(t)
        return plan(t) if t == 0 or gate.wait(5) else None

    monkeypatch.setattr(stream, "step", gated)
    steps = Loader(stream, HalfMask(), micro_tokens=200, workers=2)
    next(steps)
    threading.Timer(0.05, gate.set).start()
    steps.close()
    assert set(started) <= {0, 1, 2} and loader_threads() == []


def test_evaluation_batches_are_fixed_and_within_their_limits() -> None:
    split, objective = MemorySplit(), HalfMask()
    options = {"max_len": 32, "objective": objective, "micro_tokens": 100, "seed": 3}
    batches = evaluation_batches(split, SPECIAL, max_tokens=400, **options)
    again = evaluation_batches(split, SPECIAL, max_tokens=400, **options)
    assert token_hash([StepBatches(step=0, batches=batches, num_tokens=0)]) == token_hash(
        [StepBatches(step=0, batches=again, num_tokens=0)]
    )
    assert all(batch.num_tokens <= 100 and batch.masked_M is not None for batch in batches)
    assert 400 - 32 < sum(batch.num_tokens for batch in batches) <= 400
    everything = evaluation_batches(split, SPECIAL, max_tokens=None, **options)
    pieces = np.concatenate([batch.documents_B for batch in everything])
    assert np.array_equal(np.sort(pieces), np.arange(len(loader.Pieces(split, SPECIAL, 32))))
    assert len(evaluation_batches(split, SPECIAL, max_tokens=1, **options)) == 1
    assert all(objective.evaluations)


def test_evaluation_of_an_empty_split_is_refused() -> None:
    with pytest.raises(InputError, match="held-out split is empty"):
        evaluation_batches(MemorySplit(0), SPECIAL, max_len=32, objective=HalfMask(), micro_tokens=100)


def test_micro_batches_too_small_for_a_piece_are_refused_at_once() -> None:
    with pytest.raises(InputError, match="micro_tokens 31 does not hold a piece of 32"):
        Loader(stream_of(), HalfMask(), micro_tokens=31)
