"""What a run was told to do: its stages and its config."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from terrazzo.train.report.markup import Html, section, table, tag
from terrazzo.train.report.record import RunRecord, column
from terrazzo.train.units import duration, short, whole


def stages(run: RunRecord) -> Html:
    """What each stage was told to do and what came of it, a column a stage."""
    columns = [_stage(run, stage) for stage in run.stages]
    rows = [[name, *(column[name] for column in columns)] for name in (columns[0] if columns else ())]
    head = ["", *(str(stage.get("name", "")) for stage in run.stages)]
    return section("Stages" if len(columns) > 1 else "Recipe", table(head, rows))


def _stage(run: RunRecord, stage: Mapping[str, Any]) -> dict[str, str]:
    lines = [line for line in run.steps if line.get("stage") == stage.get("name")]
    held = [line for line in run.evaluations if line.get("stage") == stage.get("name")]
    sampling, optimizer = stage.get("sampling", {}), stage.get("optimizer", {})
    schedules = stage.get("schedules", {}).items()
    batch = ("tokens a step", short(sampling.get("batch_tokens", math.nan)))
    longest = f"{sampling.get('max_len', '?')} tokens"
    if run.is_task:
        batch = ("documents a step", whole(run.workload.get("batch_size", math.nan)))
        longest = f"{run.workload.get('max_len', '?')} tokens"
    spent = f"{whole(len(lines))} in {duration(float(column(lines, 'step_seconds').sum()))}"
    return {
        "model": _model_words(stage.get("model", {})),
        "objective": _settings(stage.get("objective", {})),
        "optimizer": _settings(optimizer),
        "schedules": "; ".join(f"{name}: {_settings(schedule)}" for name, schedule in schedules),
        batch[0]: batch[1],
        "longest document": longest,
        "budget": _budget_words(stage.get("budget", {})),
        "steps": spent if lines else "none yet",
        "held-out loss": f"{held[-1]['heldout_loss']:.4f}" if held else "–",
    }


def config(run: RunRecord) -> Html:
    """The resolved config, folded."""
    text = json.dumps(run.config, indent=2, ensure_ascii=False)
    return section("Config", tag("details", tag("summary", "Every field, as it was resolved"), tag("pre", text)))


def _settings(values: Mapping[str, Any]) -> str:
    rest = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in values.items() if k != "kind" and v is not None)
    return f"{values.get('kind', '')} ({rest})" if rest else str(values.get("kind", ""))


def _model_words(model: Mapping[str, Any]) -> str:
    if model.get("kind") == "init":
        changed = ", ".join(f"{k} {v}" for k, v in model.get("fields", {}).items())
        return f"{model.get('family')} {model.get('size')}{f', {changed}' if changed else ''}"
    transform = f", {model['transform']}" if model.get("transform") else ""
    return f"{model.get('path') or 'of the stage before'}{transform}"


def _budget_words(budget: Mapping[str, Any]) -> str:
    if budget.get("steps"):
        return f"{whole(budget['steps'])} steps"
    return f"{short(budget['tokens'])} tokens" if budget.get("tokens") else duration(budget.get("seconds") or math.nan)
