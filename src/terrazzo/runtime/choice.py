"""The fastest runtime on this machine: measured once for a shape of model, and remembered.

Shapes: T packed tokens, B documents.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from terrazzo.config import config, to_dict
from terrazzo.errors import InputError
from terrazzo.nn import EncoderConfig
from terrazzo.packed import Packed
from terrazzo.provenance import versions
from terrazzo.runtime.contract import Precision, Runtime, share_threads
from terrazzo.runtime.machine import Machine, this_machine
from terrazzo.runtime.memory import Memory

PACKAGES = ("torch", "openvino", "nncf", "onnxruntime")
BUDGETS = (512, 1024, 2048, 4096, 8192)
SECONDS = 4.0
#: A trial this much slower than the best of its round is not measured again.
_HOPELESS = 1.3
#: Lengths of ordinary text, paragraphs and sentences: a mean of about 70 tokens, a twentieth beyond 200.
_LENGTHS = (8, 12, 16, 20, 24, 28, 32, 36, 40, 48, 56, 64, 72, 80, 96, 112, 128, 160, 224, 320)
#: Opens a candidate for a number of streams.
Opener = Callable[[int | None], Runtime]


@config
class Choice:
    """What ran fastest.

    Args:
        runtime: its name; batch_tokens, streams: at which it did.
        rates: tokens a second of every candidate, each at its best of the tried streams.
        left_out: candidates that could not be opened, and why.
    """

    runtime: str
    batch_tokens: int
    streams: int
    rates: dict[str, float]
    left_out: dict[str, str] = field(default_factory=dict)


_MEMORY = Memory(kind=Choice, name="choices", format="terrazzo-choices-1", measured="runtimes")


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A choice, and whether it comes from an earlier measurement on this machine."""

    choice: Choice
    remembered: bool


def choose(
    candidates: Mapping[str, Opener],
    shape: EncoderConfig,
    precision: Precision,
    *,
    seconds: float | None = None,
    machine: Machine | None = None,
    memory: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Chosen:
    """The fastest of some runtimes for a shape of model, at its best batch and number of streams.

    It is remembered where every candidate could be opened: why one could not may lie in this model's weights.

    Args:
        candidates: by name, each opened with a number of streams; one that raises InputError is left out.
        seconds: roughly, of measuring; None is `SECONDS`.
        machine: whose choice it is; None is this one.
        memory: file of choices; None is the user's own, see `memory_file`.
        progress: is told when measuring begins.

    Raises:
        InputError: no candidate could be opened: why the first could not.
    """
    machine, memory = machine or this_machine(), memory or memory_file()
    key = choice_key(machine, shape, precision, tuple(candidates))
    known = _MEMORY.read(memory).get(key)
    if known is not None and not known.left_out:
        return Chosen(choice=known, remembered=True)
    if progress is not None:
        progress(f"measuring {', '.join(candidates)}...")
    choice = measure(candidates, shape, machine.cores, SECONDS if seconds is None else seconds)
    if not choice.left_out:
        _MEMORY.add(memory, key, choice)
    return Chosen(choice=choice, remembered=False)


def measure(candidates: Mapping[str, Opener], shape: EncoderConfig, cores: int, seconds: float) -> Choice:
    """Measure every candidate with one stream and with one a core, then the winner's batches.

    Slow models are measured on fewer documents, and on no batches that would leave a stream without one.
    """
    opened, left_out = _opened(candidates, sorted({1, cores}))
    once = made_up_documents(shape, 1)
    slowest = max(_warm(runtime, list(_batches(once, 1024, runtime.pads))) for runtime in opened.values())
    documents = made_up_documents(shape, int(np.clip(seconds / (1.5 * len(opened) * slowest), 1, 8)))
    share = sum(map(len, documents)) // cores
    trials = {key: (runtime, min(runtime.batch_tokens, share)) for key, runtime in opened.items()}
    rates = _rates(trials, documents, seconds / 2)
    name, count = max(rates, key=rates.__getitem__)
    winner = opened[name, count]
    tried = {budget: (winner, budget) for budget in BUDGETS if budget <= share} or {share: (winner, share)}
    budgets = _rates(tried, documents, seconds / 2)
    best = max(budgets, key=budgets.__getitem__)
    found = [*((own, rate) for (own, _), rate in rates.items()), (name, budgets[best])]
    by_name = {own: round(max(rate for each, rate in found if each == own), 1) for own, _ in found}
    return Choice(runtime=name, batch_tokens=best, streams=count, rates=by_name, left_out=left_out)


def _opened(
    candidates: Mapping[str, Opener], streams: Sequence[int]
) -> tuple[dict[tuple[str, int], Runtime], dict[str, str]]:
    """Every candidate with every number of streams, and those that cannot be opened with the reason."""
    opened: dict[tuple[str, int], Runtime] = {}
    left_out: dict[str, InputError] = {}
    for name, opener in candidates.items():
        try:
            runtimes = [opener(count) for count in streams]
        except InputError as error:
            left_out[name] = error
        else:
            opened.update({(name, runtime.streams): runtime for runtime in runtimes})
    if not opened:
        raise next(iter(left_out.values()))
    return opened, {name: str(error) for name, error in left_out.items()}


def made_up_documents(shape: EncoderConfig, copies: int = 2) -> list[np.ndarray]:
    """Documents of random tokens whose lengths are those of ordinary text."""
    draw = np.random.default_rng(0)
    lengths = [min(length, shape.max_len) for length in _LENGTHS] * copies
    return [draw.integers(0, shape.vocab_size, length) for length in lengths]


def choice_key(machine: Machine, shape: EncoderConfig, precision: Precision, candidates: Sequence[str]) -> str:
    """What a choice depends on: the machine, the shape of the model, the packages, and between whom it was."""
    packages = versions(PACKAGES)
    what = json.dumps([to_dict(shape), precision, packages, sorted(candidates)], sort_keys=True)
    return f"{machine.key} | {precision} | {hashlib.sha256(what.encode()).hexdigest()[:16]}"


def memory_file() -> Path:
    """The user's file of choices: $XDG_CACHE_HOME/terrazzo/runtimes.json, or under ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "terrazzo" / "runtimes.json"


def _rates(
    trials: Mapping[Any, tuple[Runtime, int]], documents: Sequence[np.ndarray], seconds: float
) -> dict[Any, float]:
    """Tokens a second of each trial, a runtime with a token budget: the best of rounds that interleave them.

    Trials that are far behind after a round are not measured again.
    """
    tokens = sum(map(len, documents))
    batches = {key: list(_batches(documents, budget, runtime.pads)) for key, (runtime, budget) in trials.items()}
    best = dict.fromkeys(trials, float("inf"))
    began, left, rounds = time.perf_counter(), list(trials), 0
    while rounds < 2 or (time.perf_counter() - began < seconds and rounds < 20):
        for key in left:
            best[key] = min(best[key], _seconds(trials[key][0], batches[key]))
        quickest, rounds = min(best.values()), rounds + 1
        left = [key for key in left if best[key] <= _HOPELESS * quickest]
    return {key: tokens / spent for key, spent in best.items()}


def _warm(runtime: Runtime, batches: Sequence[Packed]) -> float:
    """The seconds of a second pass: the first one also allocates and compiles."""
    _seconds(runtime, batches)
    return _seconds(runtime, batches)


def _seconds(runtime: Runtime, batches: Sequence[Packed]) -> float:
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(
            runtime.streams, initializer=share_threads, initargs=(threads, runtime.streams)
        ) as pool:
            began = time.perf_counter()
            list(pool.map(runtime, batches))
            return time.perf_counter() - began
    finally:
        torch.set_num_threads(threads)  # streams have changed what all threads of the process share


def _batches(documents: Sequence[np.ndarray], budget: int, pads: bool) -> Iterator[Packed]:
    """Documents sorted by length, at most `budget` tokens in a batch, padding included, or one document."""
    batch: list[np.ndarray] = []
    for document in sorted(documents, key=len, reverse=True):
        size = (len(batch) + 1) * len(batch[0]) if pads and batch else sum(map(len, batch)) + len(document)
        if batch and size > budget:
            yield Packed.from_sequences(batch)
            batch = []
        batch.append(document)
    yield Packed.from_sequences(batch)
