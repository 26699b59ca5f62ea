"""The rows of a suite's tasks: which files there are, which are missing, how a split or a cap is drawn."""

from __future__ import annotations

import csv
import hashlib
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from terrazzo.errors import InputError
from terrazzo.tasks.rows import example_of, read_examples
from terrazzo.tasks.suites.manifest import Procedure, SuiteTask
from terrazzo.tasks.task import Example

#: Share of the training rows that a grid of learning rates is judged on.
CHOICE_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class TaskRows:
    """Rows of a task.

    Args:
        train: training rows, none for tasks without training.
        evaluate: judged rows by part.
        note: how they differ from the task's own split, "" where they do not.
    """

    train: list[Example]
    evaluate: dict[str, list[Example]]
    note: str = ""


def missing_files(task: SuiteTask, data_root: Path) -> tuple[str, ...]:
    """Files without which the task cannot run and that are not under `data_root`; none where its fallback is whole."""
    absent = _absent((*task.train, *task.evaluate.values()), data_root)
    return absent if absent and _fallback_absent(task, data_root) else ()


def task_rows(task: SuiteTask, procedure: Procedure, data_root: Path, cache: Path) -> TaskRows:
    """Read a task's rows and draw as many as the procedure says.

    Args:
        cache: folder for what comes out of .zip files.

    Raises:
        InputError: a file is missing or a row cannot be used.
    """
    use_fallback = bool(_absent((*task.train, *task.evaluate.values()), data_root))
    fallback = task.fallback if use_fallback else None
    train = _read(task, fallback.train if fallback else task.train, data_root, cache)
    if fallback and fallback.held_out:
        train, judged = split_rows(train, fallback.held_out)
        parts = {"held out": judged}
    else:
        parts = {part: _read(task, (file,), data_root, cache) for part, file in task.evaluate.items()}
    return TaskRows(
        train=draw_rows(train, procedure.train_rows),
        evaluate={part: draw_rows(rows, procedure.eval_rows) for part, rows in parts.items()},
        note=fallback.note if fallback else "",
    )


def split_rows(rows: Sequence[Example], share: float, purpose: str = "") -> tuple[list[Example], list[Example]]:
    """The rows without a share of their texts, and that share; equal texts fall on one side, in whatever order.

    Args:
        share: of the distinct texts, at least one of them.
        purpose: draws another share; without one, the share overlaps with what `draw_rows` takes.
    """
    numbers = [_number(row, purpose) for row in rows]
    distinct = sorted(set(numbers))
    limit = distinct[max(1, round(share * len(distinct))) - 1]
    return (
        [row for row, number in zip(rows, numbers, strict=True) if number > limit],
        [row for row, number in zip(rows, numbers, strict=True) if number <= limit],
    )


def draw_rows(rows: Sequence[Example], count: int | None) -> list[Example]:
    """At most `count` rows in their order, drawn by a hash of their texts, the same ones every time."""
    if count is None or len(rows) <= count:
        return list(rows)
    order = sorted(range(len(rows)), key=lambda row: (_number(rows[row]), row))
    return [rows[row] for row in sorted(order[:count])]


def _number(row: Example, purpose: str = "") -> float:
    text = f"{row.text}\0{row.other or ''}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, person=purpose.encode()).digest(), "big") / 2**64


def _read(task: SuiteTask, files: Sequence[str], data_root: Path, cache: Path) -> list[Example]:
    kind = "regression" if task.kind == "similarity" else task.kind
    paths = [local_file(data_root, file, cache) for file in files]
    if task.separated is not None:
        return [row for path in paths for row in _separated(task, path)]
    return [row for path in paths for row in read_examples(path, kind, task.fields, encoding=task.encoding)]


def _separated(task: SuiteTask, path: Path) -> Iterator[Example]:
    """Rows of a .csv file without a header whose delimiter and quote cannot be told from its first lines."""
    assert task.separated is not None
    with open(path, encoding=task.encoding, newline="") as file:
        for number, cells in enumerate(csv.reader(file, delimiter=task.separated[0], quotechar=task.separated[1]), 1):
            values = {str(column): cell for column, cell in enumerate(cells)}
            yield example_of(values, task.kind, where=f"{path}, row {number}", fields=task.fields, labelled=True)


def local_file(data_root: Path, file: str, cache: Path) -> Path:
    """The path of a data file; a member of a .zip file is written under `cache` first.

    Raises:
        InputError: it is not there.
    """
    archive, member = _split_zip(file)
    if member is None:
        return data_root / file
    if not _there(data_root, file):
        raise InputError(f"{data_root / file}: no such file in the archive")
    out = cache / file.replace("/", "_")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    with zipfile.ZipFile(data_root / archive) as opened:
        temporary.write_bytes(opened.read(member))
    os.replace(temporary, out)
    return out


def _split_zip(file: str) -> tuple[str, str | None]:
    before, dot_zip, member = file.partition(".zip/")
    return (before + ".zip", member) if dot_zip else (file, None)


def _there(data_root: Path, file: str) -> bool:
    archive, member = _split_zip(file)
    if member is None or not (data_root / archive).is_file():
        return member is None and (data_root / file).exists()
    with zipfile.ZipFile(data_root / archive) as opened:
        return member in opened.namelist()


def _absent(files: Sequence[str], data_root: Path) -> tuple[str, ...]:
    return tuple(dict.fromkeys(file for file in files if not _there(data_root, file)))


def _fallback_absent(task: SuiteTask, data_root: Path) -> bool:
    if task.fallback is None:
        return True
    judged = () if task.fallback.held_out else tuple(task.evaluate.values())
    return bool(_absent((*task.fallback.train, *judged), data_root))
