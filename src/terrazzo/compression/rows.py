"""Labelled rows told apart: some to learn from, some to choose by, and some that only the proof sees."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from terrazzo.compression.goal import rows_to_prove
from terrazzo.errors import InputError
from terrazzo.tasks.evaluate import fingerprint
from terrazzo.tasks.rows import read_examples
from terrazzo.tasks.suspicions import text_key
from terrazzo.tasks.task import BadRow, Example, Task

#: Rows to choose by, at most, and their share of those held out; rows held out of a file, at most (unless a proof needs
#: more), and their share.
MOST_CHOOSING, CHOOSING = 1000, 0.25
MOST_HELD_OUT, HELD_OUT = 5000, 0.5
#: The least share of answers that compression changes; a proof that needs more rows than this says is hopeless.
LEAST_CHANGED = 0.02
#: Tasks that learn from rows without answers.
TEXTS = ("label", "pair", "regression", "multi")
#: Rows below which nothing can be chosen.
LEAST_ROWS = 100


@dataclass(frozen=True, kw_only=True)
class Split:
    """The rows of a compression.

    Args:
        learn: calibrate, prune and distil; choose: judge candidates; proof: judge the one that was chosen.
        texts: rows without answers, to learn back from the dense model by; none of them stands in another part.
        same_file: whether all come from one file; source, judging: names of the files of rows to learn from, and of
            the others.
    """

    learn: list[Example]
    choose: list[Example]
    proof: list[Example]
    same_file: bool
    source: str = "data"
    judging: str = "data"
    texts: list[Example] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """A hash of the texts and answers that the proof is made on."""
        return fingerprint(self.proof)

    @property
    def whole_fingerprint(self) -> str:
        """The same of all rows."""
        return fingerprint([*self.learn, *self.choose, *self.proof, *self.texts])

    def beside(self, texts: Sequence[Example]) -> list[Example]:
        """Those of some rows that stand in no part, each once, without their answers."""
        known = {_text(row) for part in (self.learn, self.choose, self.proof) for row in part}
        return [replace(row, target=None) for row in _once(texts) if _text(row) not in known]


def split_rows(
    task: Task,
    rows: Sequence[Example],
    held_out: Sequence[Example] | None,
    drop: float,
    seed: int,
    source: str = "data",
    judging: str = "",
) -> Split:
    """Shuffle rows by `seed` and tell them apart; no text stands in two parts, or twice among the rows that judge.

    Questions about one context stay in one part: who has seen the context knows half of the answer.

    Args:
        held_out: rows that the model was not fine-tuned on, to choose and to prove by; None takes a share of `rows`.
        drop: points that are to be proved; source, judging: what messages call both.

    Raises:
        InputError: too few rows, with how many are needed; a drop that no number of rows proves.
    """
    if drop <= 0:
        raise InputError("a drop of 0 points cannot be proved by any number of rows: allow some, e.g. --max-drop 0.5")
    learn = _shuffled(rows, seed)
    if held_out is None:
        most = max(MOST_HELD_OUT, _held_for(rows_to_prove(drop, LEAST_CHANGED)))
        judged, learn = _apart(task, learn, min(most, int(HELD_OUT * len(learn))))
    else:
        judged, seen = _shuffled(held_out, seed), _seen(task)
        kept = set(map(seen, judged))
        learn = [row for row in learn if seen(row) not in kept]
    judged = _once(judged)
    choose, proof = _apart(task, judged, min(MOST_CHOOSING, max(LEAST_ROWS, int(CHOOSING * len(judged)))))
    split = Split(
        learn=learn, choose=choose, proof=proof, same_file=held_out is None, source=source, judging=judging or source
    )
    _refuse_few(task, split, drop, source, judging, len(rows))
    return split


def read_split(
    task: Task,
    data: str | Path,
    held_out: str | Path | None,
    drop: float,
    seed: int,
    fields: Mapping[str, str] | None = None,
    texts: str | Path | None = None,
) -> Split:
    """The same of files.

    Args:
        texts: rows without answers, or whose answers are not looked at.

    Raises:
        InputError: a file cannot be read, texts for a task that has places in them, texts that all stand among the
            other rows, or as `split_rows`.
    """
    if texts is not None and task.kind not in TEXTS:
        raise InputError(f"--texts {texts}: rows without answers are of use to {', '.join(TEXTS)}, not to {task.kind}")
    rows = read_examples(data, task.kind, fields)
    judged = None if held_out is None else read_examples(held_out, task.kind, fields)
    split = split_rows(task, rows, judged, drop, seed, str(data), str(held_out or ""))
    if texts is None:
        return split
    given = read_examples(texts, task.kind, fields, labelled=False)
    more = split.beside(given)
    if not more:
        raise InputError(
            f"--texts {texts}: all {len(given):,} rows stand among those to learn from or to judge by: give others, or "
            "leave it out"
        )
    return replace(split, texts=more)


def refuse_unknown(encoded: Sequence[object], source: str) -> None:
    """Refuse rows of which most have answers that the task does not know.

    Raises:
        InputError: naming the first of them.
    """
    bad = [given for given in encoded if isinstance(given, BadRow)]
    if 2 * len(bad) > len(encoded):
        raise InputError(
            f"{source}: {len(bad):,} of {len(encoded):,} rows are none of this model's task; the first: "
            f"{bad[0].where}: {bad[0].message}: give rows of the task that it was fine-tuned on"
        )


def _shuffled(rows: Sequence[Example], seed: int) -> list[Example]:
    """The rows that have answers, in an order of `seed`."""
    chosen = [row for row in rows if row.target is not None]
    random.Random(seed).shuffle(chosen)
    return chosen


def _once(rows: Sequence[Example]) -> list[Example]:
    """The first row of each text: what is counted twice seems surer than it is."""
    first: dict[tuple[str, ...], Example] = {}
    for row in rows:
        first.setdefault(text_key(row), row)
    return list(first.values())


def _apart(task: Task, rows: Sequence[Example], count: int) -> tuple[list[Example], list[Example]]:
    """The first `count` rows and the others, those whose text is among the first left out; of questions, all about the
    first contexts and the others."""
    first, seen = _whole(rows, count) if task.kind == "span" else list(rows[:count]), _seen(task)
    keys = set(map(seen, first))
    return first, [row for row in rows if seen(row) not in keys]


def _whole(rows: Sequence[Example], count: int) -> list[Example]:
    """All questions about the first contexts, at least `count` of them."""
    by_context: dict[tuple[str, ...], list[Example]] = {}
    for row in rows:
        by_context.setdefault(_context(row), []).append(row)
    first: list[Example] = []
    for some in by_context.values():
        if len(first) >= count:
            break
        first += some
    return first


def _seen(task: Task) -> Callable[[Example], tuple[str, ...]]:
    """What a model that learned from a row of the task knows of another with the same."""
    return _context if task.kind == "span" else _text


def _text(row: Example) -> tuple[str, ...]:
    """The texts of a row, whatever problem they are asked about: a teacher's states tell much of any."""
    return text_key(row)[:2]


def _context(row: Example) -> tuple[str, ...]:
    return text_key(row)[:1]


def _held_for(needed: int) -> int:
    """Rows to hold out so that `needed` of them prove."""
    return needed + min(MOST_CHOOSING, int(CHOOSING / (1 - CHOOSING) * needed) + 1)


def _refuse_few(task: Task, split: Split, drop: float, source: str, judging: str, given: int) -> None:
    if min(len(split.learn), len(split.choose), len(split.proof)) < LEAST_ROWS:
        same = "those about the texts" if task.kind == "span" else "those"
        apart = "" if split.same_file else f", {same} of {split.judging} left out"
        raise InputError(
            f"{source}: {given:,} rows{apart} leave {len(split.learn):,} to learn from; {len(split.choose):,} are "
            f"there to choose by and {len(split.proof):,} to prove by, each with an answer and a text of its own; "
            f"{LEAST_ROWS} of each are the least: give more rows"
        )
    needed = rows_to_prove(drop, LEAST_CHANGED)
    if task.kind in ("label", "pair", "multi") and len(split.proof) < needed:
        held = _held_for(needed)
        more = (
            f"about {int(held / HELD_OUT):,} rows in all, or others with --held-out"
            if split.same_file
            else f"about {held:,} rows in --held-out"
        )
        raise InputError(
            f"{judging or source}: {len(split.proof):,} rows are too few to prove a drop of at most {drop:g} points; "
            f"at least {needed:,} are needed even if only {LEAST_CHANGED:.0%} of the answers change: give {more}, or "
            "allow a larger --max-drop"
        )
