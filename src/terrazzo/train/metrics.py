"""metrics.jsonl: one line of numbers a step, written through, without doubled or torn lines after a resume."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path
from typing import Any

from terrazzo.errors import InputError, RunError
from terrazzo.provenance import write_text_atomic
from terrazzo.train.hooks import Line


class MetricsLog:
    """Appends one JSON line for each step and each evaluation; a line is with the system before the next step starts.

    A number that is not finite is written as null, which every JSON reader takes.

    Args:
        path: RUN/metrics.jsonl.
        resume_step: steps done by the checkpoint that the run goes on from; later lines are dropped, because those
            steps are taken again. None for a new run.

    Raises:
        InputError: a new run finds lines of another run, or a resumed one a damaged line.
        RunError: the disk is full, here or at a later line.
    """

    def __init__(self, path: str | Path, resume_step: int | None = None) -> None:
        self.path = Path(path)
        if resume_step is None:
            _refuse_other_run(self.path)
        elif self.path.exists():
            _drop_lines_after(self.path, resume_step)
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115  (closed by close)

    def on_step(self, line: Line) -> None:
        """Append a training line."""
        self._append(line)

    def on_evaluation(self, line: Line) -> None:
        """Append an evaluation line."""
        self._append(line)

    def on_message(self, text: str) -> None:
        """Nothing: the file holds numbers only."""

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

    def _append(self, line: Line) -> None:
        rest = memoryview(_encode(line).encode())
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise _disk_error(self.path, error) from error


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl in order; null becomes NaN.

    A last line that does not parse was being written when the run was killed, and is left out.

    Raises:
        InputError: no such file, or a damaged line before the last, which is named.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; a run writes it from its first step on")
    texts = path.read_bytes().split(b"\n")
    lines = []
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        line = _decode(text)
        if line is not None:
            lines.append(line)
        elif any(later.strip() for later in texts[number:]):
            raise InputError(f"{path}, line {number}: damaged: {text[:60]!r}; delete this line to read the rest")
    return lines


def is_evaluation(line: Line) -> bool:
    """Whether a line reports held-out documents rather than a training step."""
    return "heldout_loss" in line


def _encode(line: Line) -> str:
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
    return json.dumps(finite, ensure_ascii=False, allow_nan=False) + "\n"


def _decode(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    if not isinstance(line, dict) or not isinstance(line.get("step"), int):
        return None
    return {key: math.nan if value is None else value for key, value in line.items()}


def _refuse_other_run(path: Path) -> None:
    if path.exists() and path.stat().st_size:
        raise InputError(f"{path}: holds the metrics of another run; choose another folder, or go on with --resume")


def _drop_lines_after(path: Path, step: int) -> None:
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    try:
        write_text_atomic(path, "".join(map(_encode, kept)))
    except OSError as error:
        raise _disk_error(path, error) from error


def _disk_error(path: Path, error: OSError) -> Exception:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    return RunError(f"{path}: no space left on this disk; free some, then the same command again (pretrain: --resume)")
