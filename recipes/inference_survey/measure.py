"""What each technique costs on the same texts, in turns, and how far its vectors are from fp32's.

Shapes: B documents.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from recipes.inference_survey.techniques import Made, Technique
from terrazzo.packed import Packed
from terrazzo.runtime.agreement import Agreement, Judge
from terrazzo.tasks.batches import by_shares

#: Texts of a batch that nobody sorted.
BATCH = 32


@dataclass
class Row:
    """A technique's figures; times are CPU seconds of one thread, one entry a round.

    Args:
        macs: multiply-adds a text, as executed.
        batch_seconds: for all texts; single_seconds: for one text at a time, the median over texts.
        batch_wall, single_wall: the same on the clock.
    """

    technique: Technique
    made: Made
    texts: int
    macs: float
    agreement: Agreement
    batch_seconds: list[float] = field(default_factory=list)
    single_seconds: list[float] = field(default_factory=list)
    batch_wall: list[float] = field(default_factory=list)
    single_wall: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Texts a second in batches, the median over rounds."""
        return self.texts / median(self.batch_seconds)

    @property
    def latency(self) -> float:
        """Milliseconds of one text alone: the median over texts and rounds."""
        return 1000 * median(self.single_seconds)


def measure(
    made: Mapping[Technique, Made],
    documents: Sequence[np.ndarray],
    singles: int,
    rounds: int,
    judge: Judge,
    log: Callable[[str], None],
) -> list[Row]:
    """One row a technique.

    Args:
        singles: documents that also run alone.
        rounds: in each of which every technique has its turn, after one to warm up.
        judge: compares with fp32, on the same documents.
    """
    alone = [Packed.from_sequences([document]) for document in documents[:singles]]
    batches = {own: _batches(own, made[own], documents) for own in made}
    rows = {
        own: Row(
            technique=own,
            made=made[own],
            texts=len(documents),
            macs=sum(made[own].macs(np.asarray(batch.lengths)) for batch in batches[own]) / len(documents),
            agreement=judge(made[own].runtime),
        )
        for own in made
    }
    for number in range(rounds + 1):
        for own, row in rows.items():
            whole = [_seconds(made[own], [batch]) for batch in batches[own]]
            each = [_seconds(made[own], [batch]) for batch in alone]
            if number:
                row.batch_seconds.append(sum(cpu for cpu, _ in whole))
                row.batch_wall.append(sum(wall for _, wall in whole))
                row.single_seconds.append(median(cpu for cpu, _ in each))
                row.single_wall.append(median(wall for _, wall in each))
        log(f"round {number} of {rounds}")
    return list(rows.values())


def _batches(technique: Technique, made: Made, documents: Sequence[np.ndarray]) -> list[Packed]:
    lengths = [len(document) for document in documents]
    if technique.ordered:
        runtime = made.runtime
        chosen = list(by_shares(lengths, runtime.batch_tokens, runtime.streams, runtime.pads))
    else:
        chosen = np.split(np.arange(len(lengths)), range(BATCH, len(lengths), BATCH))
    return [Packed.from_sequences([documents[index] for index in rows]) for rows in chosen]


def _seconds(made: Made, batches: Sequence[Packed]) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    for batch in batches:
        made.runtime(batch)
    return time.process_time() - cpu, time.perf_counter() - wall
