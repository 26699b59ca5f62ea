"""What a suite is: a .toml file of tasks with their data, splits, metrics, and how each is trained."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from terrazzo.config import config, from_dict, nearest, read_file
from terrazzo.errors import InputError

FOLDER = Path(__file__).parent
PROFILES = ("quick", "paper")
Profile = Literal["quick", "paper"]
#: Kinds of task that need no training.
ZERO_SHOT = ("similarity", "minimal_pairs")


@config
class Procedure:
    """How a task is fine-tuned.

    Args:
        lr: peak learning rates; of several, the one is taken that the first seed does best with on a tenth of the
            training rows, which it does not see; then every seed trains on all of them. Empty takes the rate that
            `terrazzo finetune` takes for the model's width.
        weight_decay: as AdamW's, times the learning rate.
        warmup: share of the steps in which the rate grows; then it falls linearly to zero.
        train_rows, eval_rows: of each file, drawn without regard to their answers, the same for every seed; None takes
            all. Of minimal pairs, `eval_rows` counts the pairs of each paradigm.
    """

    lr: tuple[float, ...] = (3e-5,)
    weight_decay: float = 0.01
    batch_size: int = 32
    epochs: float = 3.0
    warmup: float = 0.06
    max_len: int = 256
    seeds: tuple[int, ...] = (0, 1, 2)
    train_rows: int | None = None
    eval_rows: int | None = None

    def __post_init__(self) -> None:
        if not self.seeds:
            raise InputError("a procedure needs at least one seed")


@config
class Published:
    """A figure of somebody else's, shown beside ours and never mixed with them.

    Args:
        value: in the metric's own unit, accuracies and F1 between 0 and 1.
        metric: what was measured, where it is not the task's own score.
        source: where it stands.
    """

    model: str
    value: float
    source: str
    metric: str = ""


@config
class Fallback:
    """Other rows for a task whose files are not all there.

    Args:
        train: files of training rows.
        held_out: share of them that is judged instead, chosen by a hash of the text; 0 judges the task's `evaluate`.
        note: what this changes, for the tables.
    """

    train: tuple[str, ...]
    note: str
    held_out: float = 0.0


@config
class SuiteTask:
    """A task of a suite.

    Args:
        kind: a kind of `terrazzo finetune`, or "similarity" and "minimal_pairs", which need no training.
        download: the public data set and where it is to be had.
        train: files of training rows under the data root; a part of the path may be a .zip file.
        evaluate: files that are judged, by part; the score is the mean over parts and metrics.
        fields: columns by field, where their names do not tell; numbers from 0 where a file has no header.
        separated: delimiter and quote of a .csv file without a header, where its first lines do not tell.
        metrics: the score is their mean.
        start_from: the task whose model this one starts from, where that one ran.
        paper: procedure of the profile "paper"; `quick` overrides fields of the suite's quick one.
    """

    name: str
    title: str
    kind: Literal["label", "pair", "regression", "tag", "similarity", "minimal_pairs"]
    download: str
    metrics: tuple[str, ...]
    evaluate: dict[str, str]
    train: tuple[str, ...] = ()
    fields: dict[str, str] = field(default_factory=dict)
    encoding: str = "utf-8"
    separated: tuple[str, str] | None = None
    fallback: Fallback | None = None
    start_from: str | None = None
    paper: Procedure = Procedure()
    quick: dict[str, Any] = field(default_factory=dict)
    published: tuple[Published, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if not self.metrics or not self.evaluate:
            raise InputError(f"task {self.name}: needs at least one metric and one file to judge")
        if self.kind not in ZERO_SHOT and not self.train:
            raise InputError(f"task {self.name}: {self.kind} tasks need training rows")


@config
class Suite:
    """A list of tasks that are reported together.

    Args:
        quick: fields of `Procedure` for the profile that ends in minutes on a CPU, over each task's own procedure.
        procedure: what the profile "paper" follows, for the tables.
        average: tasks whose mean the published averages are; empty where none are.
        published: averages of others.
    """

    name: str
    title: str
    procedure: str
    tasks: tuple[SuiteTask, ...]
    quick: dict[str, Any] = field(default_factory=dict)
    average: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()

    def task(self, name: str) -> SuiteTask:
        """The task called `name`.

        Raises:
            InputError: there is none; the message names the nearest.
        """
        by_name = {task.name: task for task in self.tasks}
        if name not in by_name:
            raise InputError(f"suite {self.name} has no task {name!r}: {nearest(name, by_name)}")
        return by_name[name]

    def procedure_of(self, task: SuiteTask, profile: Profile) -> Procedure:
        """How `task` is trained under a profile."""
        if profile == "paper":
            return task.paper
        values = {**dataclasses.asdict(task.paper), **self.quick, **task.quick}
        return from_dict(Procedure, values, f"suite {self.name}, task {task.name}, quick")


def suite_names() -> list[str]:
    """The suites that come with terrazzo."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_suite(name: str | Path) -> Suite:
    """A suite of terrazzo's by name, or one's own by its .toml file.

    Raises:
        InputError: no such suite, or a manifest with a field that does not exist.
    """
    path = Path(name) if str(name).endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        known = suite_names()
        raise InputError(f"suite {str(name)!r}: {nearest(str(name), known)}; or give a .toml file of your own")
    suite = from_dict(Suite, read_file(path), str(path))
    for task in suite.tasks:
        suite.procedure_of(task, "quick")
        if task.start_from is not None:
            suite.task(task.start_from)
    return suite
