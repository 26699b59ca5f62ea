"""What a suite run found: for files, for the terminal, for Markdown; published figures in a column of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from terrazzo.config import to_dict
from terrazzo.provenance import finite
from terrazzo.tasks.suites.manifest import Procedure, Published
from terrazzo.train.units import plural

if TYPE_CHECKING:
    from rich.table import Table

_MISSING, _NONE = "not run: files missing", "none"


@dataclass(frozen=True, kw_only=True)
class SeedRun:
    """One fine-tuned model.

    Args:
        scores: every metric of every judged part; score: the task's own, their mean.
    """

    seed: int
    lr: float
    score: float
    scores: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class TaskOutcome:
    """What came out of a task.

    Args:
        score: mean over seeds; spread: their standard deviation, 0 for one.
        low, high: 95 % interval, over seeds (Student's t) or, without training, over rows; None for one seed.
        runs: each seed's; groups: scores of parts where the task has such (the phenomena of minimal pairs).
        choice: score of each learning rate that was tried on held-out training rows and did not diverge; empty where
            one was given.
        rows: numbers of rows, "train" and each judged part.
        started_from: the task whose model was fine-tuned further, "" for the model itself.
        note: how the rows differ from the task's own split, or another warning.
    """

    name: str
    title: str
    metrics: tuple[str, ...]
    score: float
    spread: float = 0.0
    low: float | None = None
    high: float | None = None
    runs: tuple[SeedRun, ...] = ()
    groups: Mapping[str, float] = field(default_factory=dict)
    choice: Mapping[str, float] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    procedure: Procedure = Procedure()
    started_from: str = ""
    note: str = ""
    published: tuple[Published, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class MissingTask:
    """A task that did not run because its files are not there."""

    name: str
    title: str
    files: tuple[str, ...]
    download: str
    published: tuple[Published, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SuiteResult:
    """A suite run.

    Args:
        profile: "paper" follows the suite's procedure; "quick" takes fewer rows, epochs or seeds.
        mean: of the scores of the tasks that ran; published averages are of all tasks, so they compare only where
            `missing` and `left_out` are empty.
        left_out: tasks that were not asked for.
    """

    suite: str
    title: str
    model: str
    profile: str
    procedure: str
    mean: float
    tasks: tuple[TaskOutcome, ...]
    missing: tuple[MissingTask, ...] = ()
    left_out: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seed_means(self) -> dict[int, float]:
        """Mean over tasks of each seed that every task ran."""
        by_task = [{run.seed: run.score for run in task.runs} for task in self.tasks]
        shared = set.intersection(*map(set, by_task)) if by_task else set()
        return {seed: fmean(scores[seed] for scores in by_task) for seed in sorted(shared)}

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; a number that does not exist is null."""
        values: dict[str, Any] = finite(to_dict(self))
        return {"format": "terrazzo-suite-1", **values}

    def rows(self) -> list[tuple[str, ...]]:
        """The table's rows: task, metric, ours, rows trained on, published elsewhere."""
        ran = [_row(task) for task in self.tasks]
        absent = [(task.title, "", _MISSING, "", _published(task.published)) for task in self.missing]
        count = len(self.tasks)
        averages = () if self.missing or self.left_out else self.published
        last = (f"mean of {plural(count, 'task')}", "", percent(self.mean), "", _published(averages))
        return [*ran, *absent, last] if count > 1 or self.missing else [*ran, *absent]

    def notes(self) -> list[str]:
        """What the table's reader must know."""
        notes = [f"Profile {self.profile}: {self._profile_words()}"]
        notes += [f"{task.title}: {task.note}." for task in self.tasks if task.note]
        notes += [f"{task.title}: missing {', '.join(task.files)} ({task.download})." for task in self.missing]
        if self.left_out:
            notes.append(f"Not asked for: {', '.join(self.left_out)}.")
        if self.published and (self.missing or self.left_out):
            notes.append(
                "Published averages are of all tasks; ours, of the tasks that ran, does not compare with them."
            )
        figures = [*self.published, *(p for task in self.tasks for p in task.published)]
        sources = {p.source for p in [*figures, *(p for task in self.missing for p in task.published)]}
        notes += [f"Published elsewhere: {source}." for source in sorted(sources)]
        return notes

    def table(self) -> Table:
        """The table for a terminal."""
        from rich.table import Table

        table = Table(title=f"{self.title}, {self.model}", caption="\n".join(self.notes()), caption_justify="left")
        header, *rows = self._told()
        for name in header:
            table.add_column(name)
        for row in rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """The table for a Markdown file."""
        header, *rows = self._told()
        lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
        lines += ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows]
        notes = [f"- {note}" for note in self.notes()]
        return "\n".join([f"# {self.title}", "", f"Model: {self.model}", "", *lines, "", *notes]) + "\n"

    def _told(self) -> list[list[str]]:
        """Header and rows, without columns that say nothing."""
        rows = self.rows()
        told = [column for column in range(len(HEADER)) if any(row[column] not in ("", _NONE) for row in rows)]
        return [[row[column] for column in told] for row in (HEADER, *rows)]

    def _profile_words(self) -> str:
        if self.profile == "paper":
            return " ".join(self.procedure.split())
        procedures = [task.procedure for task in self.tasks if task.runs]
        if not procedures:
            return "nothing is trained."
        capped = max((p.train_rows or 0 for p in procedures), default=0)
        rows = f"at most {capped:,} training rows" if capped else "all training rows"
        seeds = sorted({len(p.seeds) for p in procedures})
        rates = sorted({run.lr for task in self.tasks for run in task.runs})
        return (
            f"{rows}, {_span([p.epochs for p in procedures])} epochs, {_counted(seeds)}, learning rate "
            f"{_span(rates)}: not the procedure of published figures."
        )


HEADER = ("task", "metric", "ours", "rows trained on", "published elsewhere")


def percent(value: float) -> str:
    """A score in points of a hundred."""
    return f"{100 * value:.1f}" if math.isfinite(value) else "-"


def _row(task: TaskOutcome) -> tuple[str, ...]:
    count = len(task.runs)
    if count > 1:
        ours = f"{percent(task.score)} ± {percent(task.spread)} ({count} seeds)"
    elif task.low is not None and task.high is not None:
        ours = f"{percent(task.score)} ({percent(task.low)} to {percent(task.high)})"
    else:
        ours = percent(task.score)
    trained = f"{task.rows['train']:,}" if task.rows.get("train") else _NONE
    return task.title, " + ".join(task.metrics), ours, trained, _published(task.published)


def _counted(seeds: Sequence[int]) -> str:
    return plural(seeds[0], "seed") if len(seeds) == 1 else f"{_span(seeds)} seeds"


def _published(figures: Sequence[Published]) -> str:
    return "; ".join(f"{figure.model} {percent(figure.value)}" for figure in figures)


def _span(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
