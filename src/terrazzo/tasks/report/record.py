"""What a fine-tuning's folder holds, for its page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from terrazzo.errors import InputError
from terrazzo.tasks.finetune_record import FORMAT, RECORD, RESULT, RESULT_FORMAT
from terrazzo.train.metrics import read_metrics

EVALUATION, EVALUATION_FORMAT = "evaluation.json", "terrazzo-evaluation-1"


@dataclass(frozen=True)
class FinetuneRecord:
    """The files of OUT as they are.

    Args:
        record: finetune.json. result: result.json, empty while runs go on.
        evaluation: of the model on the scoring rows, empty where there is none yet.
        lines: metrics.jsonl of each run that was begun, by learning rate and seed.
    """

    path: Path
    record: dict[str, Any]
    result: dict[str, Any]
    evaluation: dict[str, Any]
    lines: dict[tuple[float, int], list[dict[str, Any]]]

    @classmethod
    def read(cls, out: Path) -> FinetuneRecord:
        """Read a fine-tuning's folder.

        Raises:
            InputError: it is none, or a file in it is damaged.
        """
        if not (out / RECORD).is_file():
            raise InputError(f"{out}: not the folder of a fine-tuning (no {RECORD})")
        lines = {}
        for run in sorted((out / "runs").glob("lr-*-seed-*")):
            lr, _, seed = run.name.removeprefix("lr-").rpartition("-seed-")
            if (run / "metrics.jsonl").is_file():
                lines[float(lr), int(seed)] = read_metrics(run / "metrics.jsonl")
        result = _json(out / RESULT, RESULT_FORMAT)
        return cls(out, _json(out / RECORD, FORMAT), result, _json(out / EVALUATION, EVALUATION_FORMAT), lines)

    @property
    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = self.record["config"]
        return config

    @property
    def understood(self) -> dict[str, Any]:
        understood: dict[str, Any] = self.record["understood"]
        return understood


def _json(file: Path, form: str) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file}: does not parse: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{file}: is not a JSON object")
    if values.get("format") != form:
        raise InputError(f"{file}: format is {values.get('format')!r}, not {form!r}")
    return values
