"""How fast a model is on this machine: one batch of a person's rows through every runtime, in interleaved rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from terrazzo.compression.latency import Conditions, LatencyTable
from terrazzo.compression.latency_measure import clock_of, latency_table, with_threads
from terrazzo.compression.probes import open_encoder
from terrazzo.compression.subject import Subject
from terrazzo.compression.timing import Times, Timing, time_calls
from terrazzo.config import config
from terrazzo.errors import InputError
from terrazzo.nn import Encoder
from terrazzo.packed import Packed
from terrazzo.runtime import Precision, Runtime
from terrazzo.runtime.building import RUNTIMES, installed
from terrazzo.runtime.folder import RuntimeName
from terrazzo.runtime.machine import Machine, this_machine
from terrazzo.runtime.padded import PaddedEncoder, padded_inputs
from terrazzo.tasks.batches import collate
from terrazzo.tasks.forward import answer
from terrazzo.tasks.task import Encoded

#: Tokens of the timed batch where a person does not say how many texts it has.
TOKENS = 1024
#: What plain PyTorch is called among the runtimes.
PLAIN = "plain PyTorch"


@config
class Here:
    """How a model is run on this machine.

    Args:
        threads: cores that one batch runs on. With one, which is how a server with a stream a core runs, times are
            those of the CPU, and other work on the machine does not lengthen them.
        batch: texts of the batch that is timed; None takes as many as make about 1,024 tokens.
        length: tokens of each; None takes the lengths of the rows.
    """

    threads: int = 1
    batch: int | None = None
    length: int | None = None

    def __post_init__(self) -> None:
        for name in ("threads", "batch", "length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} {value}: at least 1")


def here(threads: int = 1, batch: int | None = None, length: int | None = None) -> Here:
    """This machine, as `Here` describes it."""
    return Here(threads=threads, batch=batch, length=length)


class Bench:
    """Times a task's models on one batch of its rows."""

    def __init__(
        self, subject: Subject, on: Here, machine: Machine | None = None, timing: Timing | None = None
    ) -> None:
        self.subject, self.on, self.machine = subject, on, machine or this_machine()
        self.timing = timing or Timing()
        if on.threads > self.machine.cores:
            raise InputError(f"threads {on.threads}: this process may use {self.machine.cores} cores: take fewer")
        if on.length is not None:
            refuse_length(subject, on.length)
        self.documents = timed_documents(subject.choose.flat, on)
        self._tables: dict[tuple[RuntimeName, Precision], LatencyTable] = {}

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of the documents of the timed batch."""
        return tuple(len(document.ids) for document in self.documents)

    @cached_property
    def batch(self) -> Packed:
        """The timed batch, without answers."""
        return collate([without_answer(document) for document in self.documents])

    def conditions(self, runtime: RuntimeName, precision: Precision) -> Conditions:
        """What times of a runtime depend on, as latency tables have it."""
        return Conditions(
            runtime=runtime,
            precision=precision,
            lengths=self.lengths,
            threads=self.on.threads,
            task=self.subject.task.kind if self.subject.pooled else "",
            selects=self.subject.selects,
        )

    def table(self, runtime: RuntimeName, precision: Precision) -> LatencyTable:
        """The latency table of the dense shape, the same for as long as the bench is.

        Raises:
            TooNoisy: times measured twice differ too much.
        """
        if (runtime, precision) not in self._tables:
            forward = answer(self.subject.model) if self.subject.pooled else None
            self._tables[runtime, precision] = latency_table(
                self.subject.encoder.config,
                self.conditions(runtime, precision),
                forward=forward,
                timing=self.timing,
                machine=self.machine,
            )
        return self._tables[runtime, precision]

    def open(self, encoder: Encoder, runtime: RuntimeName) -> Runtime:
        """An encoder in fp32 on a runtime, with one stream on the threads of `on`."""
        return open_encoder(encoder, self.conditions(runtime, "fp32"), self.machine)

    def time(self, runtimes: Mapping[str, Callable[..., Tensor]]) -> Times:
        """Milliseconds of the batch, from its token ids to the task's outputs, on each runtime.

        Raises:
            TooNoisy: times measured twice differ too much.
        """
        forward = answer(self.subject.model)
        calls = {name: _call(forward, runtime, self.batch) for name, runtime in runtimes.items()}
        with with_threads(self.on.threads), torch.inference_mode():
            return time_calls(calls, clock_of(self.conditions("torch", "fp32")), self.timing)

    @cached_property
    def dense(self) -> dict[str, Callable[..., Tensor]]:
        """The dense model in plain PyTorch and on every fp32 runtime that is installed."""
        encoder = self.subject.encoder
        names = [name for name in RUNTIMES["fp32"] if installed(name, "fp32")]
        return {**{name: self.open(encoder, name) for name in names}, PLAIN: plain(encoder)}

    def beside(self, small: Callable[..., Tensor] | None = None) -> Times:
        """Milliseconds of the dense model everywhere and of a compressed one, "small", side by side.

        Raises:
            TooNoisy: times measured twice differ too much.
        """
        return self.time(self.dense if small is None else {**self.dense, "small": small})


def plain(encoder: Encoder) -> Callable[[Packed, Tensor | None], Tensor]:
    """The encoder as PyTorch runs it without any of our means: eager, over a batch padded to its longest document."""
    padded = PaddedEncoder(encoder).eval()

    def run(batch: Packed, select_M: Tensor | None = None) -> Tensor:
        inputs = {
            name: torch.from_numpy(values) for name, values in padded_inputs(batch, encoder.config, select_M).items()
        }
        with torch.inference_mode():
            hidden_BSD: Tensor = padded(inputs["ids"], inputs["lengths"], inputs.get("types"))
            return hidden_BSD.flatten(0, 1).index_select(0, inputs["rows"])

    return run


def fastest(times: Times) -> RuntimeName:
    """The fastest of the fp32 runtimes."""
    found: dict[str, float] = {name: ms for name, ms in times.ms.items() if name in RUNTIMES["fp32"]}
    best = min(found, key=found.__getitem__)
    return next(name for name in RUNTIMES["fp32"] if name == best)


def refuse_length(subject: Subject, length: int) -> None:
    """Refuse a length that the model does not take, or whose head needs places in real documents.

    Raises:
        InputError: either.
    """
    if length > subject.loaded.max_len:
        raise InputError(f"length {length}: the model reads {subject.loaded.max_len} tokens of a text: take fewer")
    if not subject.pooled:
        raise InputError(
            f"length {length}: a model for {subject.task.kind} is timed on documents of the rows as they are: leave it "
            "out"
        )


def timed_documents(documents: list[Encoded], on: Here) -> list[Encoded]:
    """Documents whose lengths spread like those of all: evenly over them sorted by length."""
    if on.length is not None:
        documents = _of_length(documents, on.length)
    ordered = sorted(documents, key=lambda document: len(document.ids))
    mean = float(np.mean([len(document.ids) for document in ordered]))
    count = on.batch or max(1, round(TOKENS / mean))
    places = np.linspace(0, len(ordered) - 1, 2 * count + 1)[1::2].round().astype(int)
    return [ordered[place] for place in places]


def _of_length(documents: list[Encoded], length: int) -> list[Encoded]:
    """The documents' tokens laid end to end and cut into pieces of one length."""
    ids = np.concatenate([document.ids for document in documents])
    if len(ids) < length:
        raise InputError(f"length {length}: the rows have {len(ids):,} tokens in all: take fewer")
    return [Encoded(ids=ids[first : first + length]) for first in range(0, len(ids) - length + 1, length)]


def without_answer(document: Encoded) -> Encoded:
    """A document without its answer."""
    return Encoded(
        ids=document.ids, token_types=document.token_types, positions=document.positions, problem=document.problem
    )


def _call(forward: Callable[..., object], runtime: Callable[..., Tensor], batch: Packed) -> Callable[[], object]:
    return lambda: forward(runtime, batch)
