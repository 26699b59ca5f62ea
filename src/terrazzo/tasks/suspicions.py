"""What looks wrong with labelled rows: leaks, contradictions, lone and lopsided classes, broken characters."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from terrazzo.tasks.task import Example
from terrazzo.train.units import plural

_SHOWN = 10
#: Rows of the commonest class for one of the rarest from which accuracy says little.
_LOPSIDED = 10
_MOJIBAKE = re.compile("[ÂÃ][\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|â€|\ufffd")

Counts = Mapping[str, int] | None


def suspicions(
    train: Sequence[Example], dev: Sequence[Example], train_classes: Counts, dev_classes: Counts
) -> list[str]:
    """Warnings about training and evaluation rows, a sentence each."""
    found = [
        lone_classes(train_classes),
        strange_classes(train_classes, dev_classes),
        lopsided(train),
        leaks(train, dev),
        contradictions(train),
        broken_characters([*train, *dev]),
    ]
    return [warning for warning in found if warning]


def lone_classes(classes: Counts) -> str:
    """Classes that a single row has."""
    lone = [name for name, count in (classes or {}).items() if count == 1]
    if not lone:
        return ""
    return f"{plural(len(lone), 'class')} with a single row in train: {_names(lone)}; add rows, or merge classes"


def strange_classes(train: Counts, dev: Counts) -> str:
    """Classes that only the evaluation rows have."""
    strange = [name for name in dev or {} if name not in (train or {})]
    if not strange or not train:
        return ""
    return f"{plural(len(strange), 'class')} in the eval rows that train lacks, never to be right: {_names(strange)}"


def lopsided(train: Sequence[Example]) -> str:
    """A class that outnumbers another of its problem by far."""
    if not train or not all(isinstance(row.target, str) for row in train):
        return ""
    counts: dict[str | None, Counter[str]] = defaultdict(Counter)
    for row in train:
        counts[row.problem][class_key(row)] += 1
    (most, rows), (fewest, others) = max(map(_extremes, counts.values()), key=lambda pair: pair[0][1] / pair[1][1])
    if rows < _LOPSIDED * others:
        return ""
    metric = ", and a metric that counts classes alike (--metric f1)" if train[0].problem is None else ""
    return (
        f"class {most!r} has {rows:,} training rows and {fewest!r} {others:,}: consider "
        f"--class-weights balanced{metric}"
    )


def leaks(train: Sequence[Example], dev: Sequence[Example]) -> str:
    """Evaluation rows whose text stands in train, too, but for case and spaces."""
    places = {text_key(row): _place(row) for row in reversed(train)}
    found = [f"{_place(row)} (train: {places[text_key(row)]})" for row in dev if text_key(row) in places]
    if not found:
        return ""
    return (
        f"{len(found):,} of {plural(len(dev), 'eval row')} stand in train, too, so the score flatters: "
        f"{_listed(found)}; take them out of one of the two"
    )


def contradictions(train: Sequence[Example]) -> str:
    """Training rows of one text with different answers."""
    groups: dict[tuple[str, ...], list[Example]] = defaultdict(list)
    for row in train:
        groups[text_key(row)].append(row)
    found = [
        " and ".join(f"{_place(row)} ({row.target!r:.30})" for row in first_of_each(rows))
        for rows in groups.values()
        if len(rows) > 1 and isinstance(rows[0].target, (str, float)) and len({row.target for row in rows}) > 1
    ]
    if not found:
        return ""
    return f"{plural(len(found), 'text')} in train with different answers: {_listed(found)}; decide for one"


def first_of_each(rows: Sequence[Example]) -> list[Example]:
    """The first two rows whose answers differ."""
    return [rows[0], next(row for row in rows if row.target != rows[0].target)]


def broken_characters(rows: Iterable[Example]) -> str:
    """Rows that look as if their text had been read in the wrong encoding once."""
    found = [(row, match) for row in rows if (match := _MOJIBAKE.search(row.text) or _MOJIBAKE.search(row.other or ""))]
    if not found:
        return ""
    row, match = found[0]
    return (
        f"{plural(len(found), 'row')} with broken characters ({match.group()!r} in {row.where}): the text was once "
        "read in the wrong encoding; make the file anew from its source"
    )


def text_key(row: Example) -> tuple[str, ...]:
    """What makes two rows the same: their texts and problem, but for case and spaces."""
    return tuple(" ".join((text or "").casefold().split()) for text in (row.text, row.other, row.problem))


def class_key(row: Example) -> str:
    """The name of a row's class; classes of the same name in two problems are two."""
    return str(row.target) if row.problem is None else f"{row.problem}/{row.target}"


def _place(row: Example) -> str:
    """Where a row stands, without the name of its file."""
    return row.where.rpartition(", ")[2]


def _extremes(counts: Counter[str]) -> tuple[tuple[str, int], tuple[str, int]]:
    """The commonest and the rarest class, with their rows."""
    ranked = counts.most_common()
    return ranked[0], ranked[-1]


def _names(names: Sequence[str]) -> str:
    return _listed([repr(name) for name in names])


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - _SHOWN:,} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
