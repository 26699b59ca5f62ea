"""The fastest runtime on this machine: measured once for a shape of model, and remembered.

Shapes: T packed tokens, B documents.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from terrazzo.config import config, from_dict, to_dict
from terrazzo.errors import InputError
from terrazzo.nn import EncoderConfig
from terrazzo.packed import Packed
from terrazzo.provenance import versions, write_json_atomic
from terrazzo.runtime.contract import Precision, Runtime
from terrazzo.runtime.machine import Machine, this_machine

PACKAGES = ("torch", "openvino", "nncf", "onnxruntime")
BUDGETS = (1024, 2048, 4096, 8192, 16_384)
FORMAT = "terrazzo-choices-1"
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
    seconds: float = 4.0,
    machine: Machine | None = None,
    memory: Path | None = None,
) -> Chosen:
    """The fastest of some runtimes for a shape of model, at its best batch and number of streams.

    Args:
        candidates: by name, each opened with a number of streams; one that raises InputError is left out.
        seconds: roughly, of measuring.
        machine: whose choice it is; None is this one.
        memory: file of choices; None is the user's own, see `memory_file`.

    Raises:
        InputError: no candidate could be opened: why the first could not.
    """
    machine, memory = machine or this_machine(), memory or memory_file()
    key = choice_key(machine, shape, precision, tuple(candidates))
    known = _remembered(memory).get(key)
    if known is not None:
        return Chosen(choice=known, remembered=True)
    choice = measure(candidates, shape, machine.cores, seconds)
    _remember(memory, key, choice)
    return Chosen(choice=choice, remembered=False)


def measure(candidates: Mapping[str, Opener], shape: EncoderConfig, cores: int, seconds: float) -> Choice:
    """Measure every candidate with one stream and with one a core, then the winner's batches."""
    opened, left_out = _opened(candidates, sorted({1, cores}))
    documents = made_up_documents(shape)
    rates = _rates({key: (runtime, runtime.batch_tokens) for key, runtime in opened.items()}, documents, seconds * 0.6)
    name, count = max(rates, key=rates.__getitem__)
    budgets = _rates({budget: (opened[name, count], budget) for budget in BUDGETS}, documents, seconds * 0.4)
    best = max(budgets, key=budgets.__getitem__)
    tried = [*((own, rate) for (own, _), rate in rates.items()), (name, budgets[best])]
    by_name = {own: round(max(rate for each, rate in tried if each == own), 1) for own, _ in tried}
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


def made_up_documents(shape: EncoderConfig, copies: int = 3) -> list[np.ndarray]:
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
    """Tokens a second of each trial, a runtime with a token budget; the best of rounds that interleave all of them."""
    tokens = sum(map(len, documents))
    batches = {key: list(_batches(documents, budget, runtime.pads)) for key, (runtime, budget) in trials.items()}
    best = dict.fromkeys(trials, float("inf"))
    began, rounds = time.perf_counter(), 0
    while rounds < 2 or (time.perf_counter() - began < seconds and rounds < 20):
        for key, (runtime, _) in trials.items():
            best[key] = min(best[key], _seconds(runtime, batches[key]))
        rounds += 1
    return {key: tokens / spent for key, spent in best.items()}


def _seconds(runtime: Runtime, batches: Sequence[Packed]) -> float:
    with ThreadPoolExecutor(runtime.streams) as threads:
        began = time.perf_counter()
        list(threads.map(runtime, batches))
        return time.perf_counter() - began


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


def _remembered(memory: Path) -> dict[str, Choice]:
    if not memory.is_file():
        return {}
    try:
        values = json.loads(memory.read_text(encoding="utf-8"))
        if values.get("format") != FORMAT:
            return {}
        return {key: from_dict(Choice, value, str(memory)) for key, value in values["choices"].items()}
    except (ValueError, KeyError, AttributeError, TypeError, OSError, RecursionError) as error:
        warnings.warn(f"{memory}: damaged, so runtimes are measured again ({error!r:.120})", stacklevel=3)
        return {}


def _remember(memory: Path, key: str, choice: Choice) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when it was read for this choice
        choices = _remembered(memory) | {key: choice}
    try:
        write_json_atomic(memory, {"format": FORMAT, "choices": to_dict(choices)})
    except OSError as error:
        warnings.warn(f"{memory}: cannot be written, so the next export measures again ({error})", stacklevel=3)
