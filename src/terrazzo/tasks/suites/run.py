"""Run a suite: every task that has its files, finished ones not again, one JSON and one table at the end."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from terrazzo.config import from_dict, to_dict
from terrazzo.errors import InputError
from terrazzo.provenance import provenance, write_json_atomic, write_text_atomic
from terrazzo.tasks.model import model_fingerprint, model_folder
from terrazzo.tasks.suites.fine_tuned import run_fine_tuned
from terrazzo.tasks.suites.manifest import PROFILES, Procedure, Profile, Suite, SuiteTask, read_suite
from terrazzo.tasks.suites.result import MissingTask, SuiteResult, TaskOutcome
from terrazzo.tasks.suites.sources import missing_files
from terrazzo.tasks.suites.zero_shot import run_minimal_pairs, run_similarity

#: Fields of a task that change neither its rows nor its training.
_WORDS = ("title", "download", "published", "note", "paper", "quick", "start_from")


def run_suite(
    name: str,
    model: str | Path,
    data_root: str | Path,
    out: str | Path,
    *,
    profile: Profile = "quick",
    tasks: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    learning_rates: Sequence[float] | None = None,
    overrides: Mapping[str, Any] | None = None,
    device: str = "auto",
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> SuiteResult:
    """Try a model on the tasks of a suite; writes OUT/suite.json and OUT/suite.md.

    A task whose files are not under `data_root` is named in the result and does not stop the others. A task that ran
    before under the same settings on the same model is not run again.

    Args:
        name: a suite of terrazzo's (glue, german, spanish, blimp, sts) or a manifest of one's own (.toml).
        model: a model folder, ours or a published one.
        data_root: folder of downloaded data sets; where each lies in it is in the manifest.
        profile: "quick" ends in minutes on a CPU with fewer rows, "paper" follows the suite's procedure.
        tasks: the tasks to run; None runs all.
        seeds, learning_rates: instead of the profile's.
        overrides: other fields of `Procedure` by name, for every task or for one: {"epochs": 2, "rte.train_rows": 300}.
        progress: called with a line for each task.

    Raises:
        InputError: no such suite, profile, task or model, or none of the tasks has its files.
    """
    suite, root, folder = read_suite(name), Path(data_root), model_folder(model)
    if profile not in PROFILES:
        raise InputError(f"profile {profile!r}: known: {', '.join(PROFILES)}")
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device {device!r}: known: auto, cpu, cuda")
    if not root.is_dir():
        raise InputError(f"{root}: no such folder of data sets")
    wanted = [suite.task(task) for task in tasks] if tasks else list(suite.tasks)
    given = {"seeds": seeds, "lr": learning_rates}
    changed = {**(overrides or {}), **{key: tuple(value) for key, value in given.items() if value is not None}}
    for key in changed:
        if "." in key:
            suite.task(key.partition(".")[0])
    runner = _Runner(suite, folder, root, Path(out), profile, changed, device, threads, progress or (lambda _: None))
    return runner.run(wanted)


class _Runner:
    """One run of a suite on one model."""

    def __init__(
        self,
        suite: Suite,
        model: Path,
        data_root: Path,
        out: Path,
        profile: Profile,
        changed: Mapping[str, Any],
        device: str,
        threads: int | None,
        progress: Callable[[str], None],
    ) -> None:
        self.suite, self.model, self.data_root, self.out = suite, model, data_root, out
        self.profile, self.changed, self.progress = profile, changed, progress
        self.machine = {"device": device, "threads": threads}
        self.weights = model_fingerprint(model)

    def run(self, wanted: Sequence[SuiteTask]) -> SuiteResult:
        """The tasks in an order in which none starts from a later one."""
        absent = {task.name: missing_files(task, self.data_root) for task in wanted}
        present = [task for task in wanted if not absent[task.name]]
        missing = [_missing(task, absent[task.name]) for task in wanted if absent[task.name]]
        if not present:
            listed = "; ".join(f"{task.title}: {', '.join(task.files)} ({task.download})" for task in missing)
            raise InputError(f"{self.data_root}: no task of suite {self.suite.name} has its files: {listed}")
        sources = {task.start_from for task in present} & {task.name for task in present}
        outcomes: dict[str, TaskOutcome] = {}
        for task in sorted(present, key=lambda task: task.name not in sources):
            outcomes[task.name] = self._finished(task, keep_model=task.name in sources, ran=set(outcomes))
            self.progress(f"{task.title}: {100 * outcomes[task.name].score:.1f}")
        return self._result([outcomes[task.name] for task in present], missing, wanted)

    def _procedure(self, task: SuiteTask) -> Procedure:
        own = {key.partition(".")[2]: value for key, value in self.changed.items() if key.startswith(f"{task.name}.")}
        common = {key: value for key, value in self.changed.items() if "." not in key}
        chosen = to_dict(self.suite.procedure_of(task, self.profile))
        return from_dict(Procedure, {**chosen, **common, **own}, "suite settings")

    def _finished(self, task: SuiteTask, *, keep_model: bool, ran: set[str]) -> TaskOutcome:
        """The outcome of a task, from OUT/TASK/outcome.json where that was written under the same settings."""
        folder, procedure = self.out / task.name, self._procedure(task)
        start_from = task.start_from if task.start_from in ran else None
        identity = _identity(task, procedure, self.weights, start_from)
        record = folder / "outcome.json"
        if record.is_file():
            held = json.loads(record.read_text(encoding="utf-8"))
            if held["identity"] == identity:
                outcome = from_dict(TaskOutcome, held["outcome"], str(record))
                return replace(outcome, title=task.title, published=task.published)
        _begin(folder, identity)
        started = time.monotonic()
        outcome = self._run_task(task, procedure, folder, start_from, keep_model)
        outcome = replace(outcome, seconds=round(time.monotonic() - started, 1))
        write_json_atomic(record, {"identity": identity, "outcome": to_dict(outcome)})
        return outcome

    def _run_task(
        self, task: SuiteTask, procedure: Procedure, folder: Path, start_from: str | None, keep_model: bool
    ) -> TaskOutcome:
        if task.kind == "minimal_pairs":
            return run_minimal_pairs(task, procedure, self.model, self.data_root)
        if task.kind == "similarity":
            return run_similarity(task, procedure, self.model, self.data_root, folder)
        model = self.out / start_from / "model" if start_from else self.model
        outcome = run_fine_tuned(
            task, procedure, model, self.data_root, folder, machine=self.machine, keep_model=keep_model
        )
        if task.start_from and not start_from:
            outcome = replace(
                outcome,
                note="; ".join(filter(None, (outcome.note, f"starts from the model, not from {task.start_from}"))),
            )
        return replace(outcome, started_from=start_from or "")

    def _result(
        self, outcomes: Sequence[TaskOutcome], missing: Sequence[MissingTask], wanted: Sequence[SuiteTask]
    ) -> SuiteResult:
        asked = {task.name for task in wanted}
        result = SuiteResult(
            suite=self.suite.name,
            title=self.suite.title,
            model=str(self.model),
            profile=self.profile,
            procedure=self.suite.procedure,
            mean=fmean(outcome.score for outcome in outcomes),
            tasks=tuple(outcomes),
            missing=tuple(missing),
            left_out=tuple(task.title for task in self.suite.tasks if task.name not in asked),
            published=self.suite.published,
            provenance={**provenance(), "weights": self.weights, "data_root": str(self.data_root)},
        )
        write_json_atomic(self.out / "suite.json", result.to_dict())
        write_text_atomic(self.out / "suite.md", result.markdown())
        return result


def _begin(folder: Path, identity: str) -> None:
    """Make the folder of a task, and empty it of what other settings left there."""
    begun = folder / "settings"
    if folder.exists() and (not begun.is_file() or begun.read_text(encoding="utf-8") != identity):
        if not begun.is_file() and any(folder.iterdir()):
            raise InputError(f"{folder}: holds other files: choose another --out")
        shutil.rmtree(folder)
    write_text_atomic(begun, identity)


def _missing(task: SuiteTask, files: tuple[str, ...]) -> MissingTask:
    return MissingTask(name=task.name, title=task.title, files=files, download=task.download, published=task.published)


def _identity(task: SuiteTask, procedure: Procedure, weights: str, start_from: str | None) -> str:
    """A hash of all that decides a task's outcome."""
    rows = {name: value for name, value in to_dict(task).items() if name not in _WORDS}
    described = json.dumps([rows, to_dict(procedure), weights, start_from], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:16]
