"""What was understood of the rows before anything was trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from terrazzo.tasks.report.record import FinetuneRecord
from terrazzo.train.report.markup import Html, join, section, table, tag
from terrazzo.train.units import percent, whole

_MOST_CLASSES = 20
Counted = Mapping[str, Any]

_FACTS: list[tuple[str, Callable[[Counted], str]]] = [
    ("rows", lambda rows: whole(rows["rows"])),
    ("that cannot be used", lambda rows: whole(rows["bad"]) if rows["bad"] else ""),
    ("windows", lambda rows: whole(rows["documents"]) if rows["documents"] > rows["rows"] else ""),
    ("tokens a row, median", lambda rows: whole(rows["lengths"]["median"]) if rows["lengths"] else ""),
    ("95 of 100 have at most", lambda rows: whole(rows["lengths"]["p95"]) if rows["lengths"] else ""),
    ("longest", lambda rows: whole(rows["lengths"]["longest"]) if rows["lengths"] else ""),
    ("cut", lambda rows: f"{whole(rows['truncated'])} ({percent(rows['truncated'] / max(1, rows['rows']))})"),
    ("values, low / mean / high", lambda rows: " / ".join(f"{value:.3g}" for value in rows["values"] or ())),
    ("words", lambda rows: whole(rows["words"]) if rows["words"] is not None else ""),
    ("without an answer", lambda rows: whole(rows["unanswerable"]) if rows["unanswerable"] is not None else ""),
]


def rows(record: FinetuneRecord) -> Html:
    """Sizes, lengths, classes of both sets of rows, and what looks wrong with them."""
    understood = record.understood
    sets = [understood["train"], *([understood["dev"]] if understood.get("dev") else [])]
    head = ["", *("training rows", "scoring rows")[: len(sets)]]
    body = [[name, *cells] for name, value in _FACTS if any(cells := [value(counted) for counted in sets])]
    return section(
        "Rows",
        _warnings(understood.get("warnings", [])),
        table(head, body, range(1, len(head))),
        _classes(sets),
    )


def _warnings(warnings: list[str]) -> Html | None:
    return (
        tag("ul", *(tag("li", warning, class_="bad") for warning in warnings), class_="warnings") if warnings else None
    )


def _classes(sets: list[Counted]) -> Html | None:
    """Rows of each class, the commonest first."""
    counted = [rows.get("classes") or {} for rows in sets]
    if not counted[0]:
        return None
    names = list(counted[0])
    body = [
        [name, *(_share(classes.get(name, 0), sum(classes.values())) for classes in counted)]
        for name in names[:_MOST_CLASSES]
    ]
    more = f"and {len(names) - _MOST_CLASSES} more" if len(names) > _MOST_CLASSES else None
    shown = table(["class", *("training rows", "scoring rows")[: len(sets)]], body, range(1, len(sets) + 1))
    return join(shown, tag("p", more, class_="note") if more else None)


def _share(count: int, total: int) -> str:
    return f"{whole(count)} ({percent(count / total if total else 0.0)})"
