"""What was understood of labelled rows, before anything is trained: counts, classes, lengths, and what looks wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from terrazzo.config import to_dict
from terrazzo.errors import InputError
from terrazzo.tasks.multi import MultiTask
from terrazzo.tasks.schemes import chunks_of_tags, has_form
from terrazzo.tasks.suspicions import class_key, suspicions
from terrazzo.tasks.task import BadRow, Encoded, Example, Span, Task
from terrazzo.tasks.words import tags_given

#: Share of rows that may be cut without a warning: a few long ones are in any file.
_CUT_SHARE = 0.05
Documents = Sequence[list[Encoded] | BadRow]


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens a row, special ones included, as they are before anything is cut."""

    median: int
    p95: int
    longest: int


@dataclass(frozen=True, kw_only=True)
class RowSet:
    """What one set of rows holds; what its kind of task does not have is None.

    Args:
        documents: what the rows become; more than rows where long texts are read in windows.
        classes: rows of each class, "problem/class" where there are problems; words or stretches of each label; most
            frequent first.
        problems: rows of each problem.
        values: lowest, mean and highest value.
        words, stretches: of tagged rows.
        unanswerable: questions whose context holds no answer.
        truncated: rows of which tokens are cut.
        bad: rows that the task cannot use.
    """

    rows: int
    documents: int
    lengths: Lengths | None
    truncated: int
    bad: int = 0
    classes: Mapping[str, int] | None = None
    problems: Mapping[str, int] | None = None
    values: tuple[float, float, float] | None = None
    words: int | None = None
    stretches: int | None = None
    unanswerable: int | None = None

    @property
    def truncated_share(self) -> float:
        """Share of rows of which tokens are cut."""
        return self.truncated / max(1, self.rows)


@dataclass(frozen=True, kw_only=True)
class Understanding:
    """What was understood of the rows of a task.

    Args:
        dev: None where no such rows are given.
        ignored: columns of the file that no field takes.
        warnings: what looks wrong, a sentence each with its rows and the mend.
    """

    kind: str
    max_len: int
    train: RowSet
    dev: RowSet | None = None
    ignored: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values: dict[str, Any] = to_dict(self)
        return values


def understand(
    train: Sequence[Example],
    dev: Sequence[Example] | None,
    task: Task,
    tokenizer: Tokenizer,
    max_len: int,
    *,
    train_documents: Documents | None = None,
    dev_documents: Documents | None = None,
    ignored: Sequence[str] = (),
) -> Understanding:
    """Count the rows of a task and look for what is wrong with them.

    Args:
        train_documents, dev_documents: what `task.encode_many` gave for the rows, where that is known already.
        ignored: columns of the files that no field takes, to be mentioned.
    """
    sets: list[RowSet] = []
    warnings: list[str] = []
    for rows, given, fate in (
        (train, train_documents, "train rows that cannot be used are left out"),
        (dev or (), dev_documents, "eval rows that cannot be used count as wrong"),
    ):
        documents = task.encode_many(rows, tokenizer, max_len) if given is None else given
        bad = [document for document in documents if isinstance(document, BadRow)]
        warnings += [f"{len(bad):,} {fate}: {_listed(bad)}"] if bad else []
        sets.append(count_rows(rows, documents))
    warnings += [
        _cut(name, counted, max_len)
        for name, counted in zip(("train", "eval"), sets, strict=True)
        if counted.truncated_share > _CUT_SHARE
    ]
    return Understanding(
        kind=task.kind,
        max_len=max_len,
        train=sets[0],
        dev=sets[1] if dev else None,
        ignored=tuple(ignored),
        warnings=(*warnings, *suspicions(train, dev or (), sets[0].classes, _unknown(task, sets[1].classes))),
    )


def count_rows(rows: Sequence[Example], documents: Documents) -> RowSet:
    """What a set of rows holds."""
    good = [given for given in documents if not isinstance(given, BadRow)]
    tokens = [sum(len(document.ids) + document.truncated for document in given) for given in good]
    classes = _classes(rows)
    tagged = [row for row in rows if _is_tagged(row)]
    problems = Counter(row.problem for row in rows if row.problem is not None)
    values = [row.target for row in rows if isinstance(row.target, float)]
    asked = [row for row in rows if row.other is not None and not tagged and _are_spans(row)]
    return RowSet(
        rows=len(rows),
        documents=sum(map(len, good)),
        lengths=_lengths(tokens),
        truncated=sum(any(document.truncated for document in given) for given in good),
        bad=len(documents) - len(good),
        classes=dict(classes.most_common()) if classes else None,
        problems=dict(problems.most_common()) or None,
        values=(min(values), float(np.mean(values)), max(values)) if values else None,
        words=sum(len(_tags(row)) for row in tagged) if tagged else None,
        stretches=sum(classes.values()) if tagged else None,
        unanswerable=sum(not row.target for row in asked) if asked else None,
    )


def _lengths(tokens: Sequence[int]) -> Lengths | None:
    if not tokens:
        return None
    median, p95, longest = (int(value) for value in np.quantile(tokens, [0.5, 0.95, 1.0], method="higher"))
    return Lengths(median=median, p95=p95, longest=longest)


def _is_tagged(row: Example) -> bool:
    spans = row.other is None and isinstance(row.target, tuple) and any(isinstance(item, Span) for item in row.target)
    return row.target is not None and (row.words is not None or spans)


def _are_spans(row: Example) -> bool:
    return isinstance(row.target, tuple) and all(isinstance(item, Span) for item in row.target)


def _classes(rows: Sequence[Example]) -> Counter[str]:
    """How often each class stands in the rows; of tags, how many stretches of each label."""
    counts: Counter[str] = Counter()
    for row in rows:
        if isinstance(row.target, str):
            counts[class_key(row)] += 1
        elif _is_tagged(row):
            counts.update(_labels(_tags(row)))
        elif isinstance(row.target, tuple):
            counts.update(item for item in row.target if isinstance(item, str))
    return counts


def _unknown(task: Task, classes: Mapping[str, int] | None) -> Mapping[str, int] | None:
    """The classes without those that a model of several problems knows, whatever rows taught it."""
    if classes is None or not isinstance(task, MultiTask):
        return classes
    known = {f"{problem.name}/{name}" for problem in task.problems for name in problem.classes}
    return {name: rows for name, rows in classes.items() if name not in known}


def _labels(tags: Sequence[str]) -> list[str]:
    if all(tag == "O" or has_form(tag) for tag in tags):
        return [label for label, _, _ in chunks_of_tags(tags)]
    return list(tags)


def _tags(row: Example) -> tuple[str, ...]:
    try:
        return tags_given(row)
    except InputError:  # the task tells of the row
        return ()


def _listed(bad: Sequence[BadRow], shown: int = 3) -> str:
    more = f"; and {len(bad) - shown:,} more" if len(bad) > shown else ""
    return "; ".join(f"{row.where}: {row.message}" for row in bad[:shown]) + more


def _cut(name: str, counted: RowSet, max_len: int) -> str:
    longest = counted.lengths.longest if counted.lengths else 0
    return (
        f"{counted.truncated_share:.0%} of the {name} rows are cut at {max_len} tokens (the longest has {longest:,}): "
        "what comes after is not read; raise --max-len where the model allows it"
    )
