"""A run folder, read for its report: what it is, how it went, where it stands."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from terrazzo.data import Corpus
from terrazzo.errors import InputError
from terrazzo.train.folder import read_run
from terrazzo.train.metrics import is_evaluation, read_metrics
from terrazzo.train.state import latest_checkpoint

#: A run is taken to be going on while its last line is younger than this, or than this many steps.
_QUIET_SECONDS, _QUIET_STEPS = 120.0, 20
#: Numbers of an evaluation line that are no metric of a task.
_EVALUATION = {"seconds", "score", "heldout_loss", "heldout_accuracy", "heldout_masked"}


@dataclass(frozen=True)
class RunRecord:
    """Everything that the run folder says.

    Args:
        config: the resolved config; record: the whole of run.json.
        steps, evaluations: lines of metrics.jsonl.
        samples: fill-mask predictions of the final model.
        finished: RUN/model is there. quiet_seconds: age of the last line, NaN before the first.
    """

    path: Path
    record: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]
    evaluations: Sequence[Mapping[str, Any]]
    samples: Sequence[Mapping[str, Any]]
    finished: bool
    quiet_seconds: float

    @classmethod
    def read(cls, run: Path) -> RunRecord:
        """Read the folder.

        Raises:
            InputError: not a run folder, or a damaged file in it, which is named.
        """
        record = read_run(run)
        metrics = run / "metrics.jsonl"
        lines = read_metrics(metrics) if metrics.is_file() else []
        return cls(
            run,
            record,
            [line for line in lines if not is_evaluation(line)],
            [line for line in lines if is_evaluation(line)],
            _samples(run / "samples.json"),
            (run / "model" / "model.safetensors").is_file(),
            time.time() - metrics.stat().st_mtime if lines else math.nan,
        )

    @property
    def config(self) -> Mapping[str, Any]:
        config: Mapping[str, Any] = self.record.get("config", {})
        return config

    @property
    def workload(self) -> Mapping[str, Any]:
        """What was learned; `kind` is "task" for labelled rows."""
        workload: Mapping[str, Any] = self.record.get("workload", {"kind": "pretraining"})
        return workload

    @property
    def is_task(self) -> bool:
        """Whether labelled rows were learned, not text."""
        return self.workload.get("kind") == "task"

    @property
    def metrics(self) -> list[str]:
        """Names of a task's metrics, the main one first."""
        held = self.heldout
        main = held.get("metric")
        others = [name for name, value in held.items() if isinstance(value, float) and name not in _EVALUATION]
        return [main, *(name for name in others if name != main)] if main else []

    @property
    def stages(self) -> Sequence[Mapping[str, Any]]:
        stages: Sequence[Mapping[str, Any]] = self.config.get("stages", ())
        return stages

    @property
    def running(self) -> bool:
        """Whether a process seems to be at work on it."""
        quiet = max(_QUIET_SECONDS, _QUIET_STEPS * _median(self.column("step_seconds")))
        return not self.finished and self.quiet_seconds < quiet

    @cached_property
    def parameters(self) -> int | None:
        """Parameters of the newest saved model, None before the first checkpoint."""
        checkpoint = latest_checkpoint(self.path)
        folders = [self.path / "model", *([checkpoint.path] if checkpoint else [])]
        return next((count_parameters(f) for folder in folders if (f := folder / "model.safetensors").is_file()), None)

    @cached_property
    def corpus(self) -> Corpus | str:
        """The data folder, or why its statistics are missing."""
        try:
            corpus = Corpus.open(self.config.get("data", ""))
        except InputError as error:
            return str(error)
        if corpus.fingerprint != self.record.get("data_fingerprint"):
            return f"{corpus.path}: holds other data now than this run was trained on"
        return corpus

    @property
    def last(self) -> Mapping[str, Any]:
        """The line that says how far the run came; empty before the first step."""
        return max([*self.steps[-1:], *self.evaluations[-1:]], key=lambda line: line["seconds"], default={})

    @property
    def heldout(self) -> Mapping[str, Any]:
        """The last evaluation; empty without one."""
        return self.evaluations[-1] if self.evaluations else {}

    def column(self, name: str) -> np.ndarray:
        """float64 [steps]; NaN where a line has no such number."""
        return column(self.steps, name)

    def boundaries(self, axis: str) -> list[tuple[float, str]]:
        """Where on `axis` each stage begins, and its name; nothing for a run of one stage."""
        if not self._begins:
            return []
        return [(0.0, self._names[0]), *((float(self.steps[i - 1][axis]), self._names[i]) for i in self._begins)]

    def by_stage(self, function: Callable[[np.ndarray], np.ndarray], values: np.ndarray) -> np.ndarray:
        """`function` of the steps of each stage on their own."""
        return np.concatenate([function(part) for part in np.split(values, self._begins)])

    @cached_property
    def _names(self) -> list[str]:
        return [line.get("stage", "") for line in self.steps]

    @cached_property
    def _begins(self) -> list[int]:
        return [i for i in range(1, len(self._names)) if self._names[i] != self._names[i - 1]]

    def total(self, name: str) -> float:
        """The sum of a column, NaN if it is empty."""
        values = self.column(name)
        return float(np.nansum(values)) if np.isfinite(values).any() else math.nan

    @property
    def trained_tokens(self) -> float:
        """Tokens of all steps so far."""
        return float(self.steps[-1].get("tokens", math.nan)) if self.steps else math.nan

    @property
    def price(self) -> float | None:
        """Money that an hour costs, from run.json or the config in it."""
        price = self.record.get("price_per_hour")
        price = price if price is not None else self.config.get("price_per_hour")
        if price is not None and not (isinstance(price, (int, float)) and 0 <= price < math.inf):
            raise InputError(f"{self.path / 'run.json'}: price_per_hour: {price!r} is not an amount such as 2.5")
        return price

    def peak_share(self) -> float:
        """Share of the peak over all the time spent in steps."""
        seconds, share = self.column("step_seconds"), self.column("peak_fraction")
        known = np.isfinite(share) & np.isfinite(seconds)
        return float((seconds * share)[known].sum() / seconds[known].sum()) if known.any() else math.nan


def column(lines: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """float64 [lines] of one number; NaN where a line does not have it."""
    return np.array([line.get(name, math.nan) for line in lines], dtype=np.float64)


def count_parameters(weights: Path) -> int:
    """Numbers in a safetensors file, from its header.

    Raises:
        InputError: the file is damaged.
    """
    try:
        with safe_open(weights, framework="np") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"{weights}: damaged ({error}); delete this model folder") from None


def _samples(path: Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        return []
    try:
        samples = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: does not parse ({error}); delete it to see the rest of the report") from None
    return list(samples)


def _median(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else 0.0
