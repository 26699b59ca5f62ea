"""What a fine-tuning leaves in its folder: what was asked, what each run scored, the chosen model."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from terrazzo.checkpoint import atomic_folder
from terrazzo.checkpoint.folder import CONFIG
from terrazzo.config import from_dict, to_dict
from terrazzo.errors import InputError
from terrazzo.provenance import provenance, write_json_atomic
from terrazzo.tasks.finetune_config import FinetuneConfig
from terrazzo.tasks.model import HEAD, TASK, model_fingerprint, model_folder
from terrazzo.tasks.seeds import Spread, spread_of
from terrazzo.tasks.training import TaskWorkload
from terrazzo.tasks.understood import Understanding
from terrazzo.train import Budget
from terrazzo.train.distributed import Ranks
from terrazzo.train.folder import first_difference, read_run
from terrazzo.train.metrics import is_evaluation, read_metrics

RECORD, RESULT = "finetune.json", "result.json"
FORMAT, RESULT_FORMAT = "terrazzo-finetune-1", "terrazzo-finetune-result-1"
#: Fields that may differ when a fine-tuning goes on: more runs, or nothing that a run depends on.
FREE_FIELDS = ("out", "train", "eval", "fields", "seeds", "lr", "threads", "keep_runs")


@dataclass(frozen=True, kw_only=True)
class RunScore:
    """What one learning rate and seed came to.

    Args:
        metric: name of the main metric; score: its value on the scoring rows; metrics: all of them, and the loss.
        step: of the evaluation that counts.
        seconds: of the run, model loading and writing included.
    """

    lr: float
    seed: int
    metric: str
    score: float
    metrics: Mapping[str, float]
    step: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class FailedRun:
    """A learning rate and seed whose run diverged.

    Args:
        error: the step and what was found there.
        seconds: until then.
    """

    lr: float
    seed: int
    error: str
    seconds: float


RunOutcome = RunScore | FailedRun


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """What a fine-tuning came to.

    Args:
        model: the task folder of the best seed at the chosen learning rate.
        metric: name of the main metric.
        lr, seed, score: of that model.
        over_seeds: mean, deviation and interval of the chosen rate's scores.
        rates: the same of every rate at which a run ended.
        runs: those that ended; failed: those that diverged.
        seconds: of all runs, and of reading the rows.
    """

    model: Path
    metric: str
    lr: float
    seed: int
    score: float
    over_seeds: Spread
    rates: Mapping[float, Spread]
    runs: tuple[RunScore, ...]
    seconds: float
    failed: tuple[FailedRun, ...] = ()


def run_folder(config: FinetuneConfig, lr: float, seed: int) -> Path:
    """The run folder of a learning rate and a seed."""
    return Path(config.out) / "runs" / f"lr-{lr:g}-seed-{seed}"


def check_folder(config: FinetuneConfig) -> None:
    """Refuse a folder that cannot be gone on with, as far as that shows without the rows.

    Raises:
        InputError: it holds something else, or a fine-tuning with other options; the first is named.
    """
    out = Path(config.out)
    if (out / RECORD).is_file():
        _check_options(out, _read(out / RECORD, FORMAT, "choose another --out"), config)
    elif out.exists() and (not out.is_dir() or any(not path.name.startswith(".") for path in out.iterdir())):
        raise InputError(f"{out} holds other files: choose another --out")


def begin_folder(config: FinetuneConfig, workload: TaskWorkload, understanding: Understanding, ranks: Ranks) -> None:
    """Write OUT/finetune.json, or find that it describes the same fine-tuning.

    Raises:
        InputError: the folder holds something else, or a fine-tuning of other rows or other fields; the first is named.
    """
    out = Path(config.out)
    record = {
        "format": FORMAT,
        "config": to_dict(config),
        "weights": model_fingerprint(model_folder(config.model)),
        "workload": to_dict(workload.describe()),
        "understood": understanding.to_dict(),
    }
    check_folder(config)
    if (out / RECORD).is_file():
        _check_same(out, record)
    ranks.barrier()
    if ranks.is_main:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise InputError(f"{out}: cannot be made ({error.strerror}): choose another --out") from None
        write_json_atomic(out / RECORD, {**record, "provenance": provenance()})
    ranks.barrier()


def _check_options(out: Path, before: Mapping[str, Any], config: FinetuneConfig) -> None:
    begun = to_dict(from_dict(FinetuneConfig, before.get("config", {}), str(out / RECORD)))
    for name, value in to_dict(config).items():
        if name not in FREE_FIELDS and begun[name] != value:
            raise InputError(
                f"{out} was begun with {first_difference(name, begun[name], value)}; go on with the same value, or "
                "choose another --out"
            )


def _check_same(out: Path, record: Mapping[str, Any]) -> None:
    before = _read(out / RECORD, FORMAT, "choose another --out")
    if before.get("weights", record["weights"]) != record["weights"]:
        raise InputError(f"model: {record['config']['model']} has changed since {out} was begun: choose another --out")
    for part in ("train", "eval"):
        if before["workload"][part] != record["workload"][part]:
            raise InputError(f"{part}: other rows than {out} was begun with: choose another --out")
    if before["workload"] != record["workload"]:
        what = first_difference("task", before["workload"], record["workload"])
        raise InputError(f"{out} was begun with {what}: choose another --out")


def read_outcome(folder: Path) -> RunOutcome | None:
    """What a run came to, None while it has not ended."""
    file = folder / RESULT
    if not file.is_file():
        return None
    values = _read(file)
    if "error" in values:
        return from_dict(FailedRun, values, str(file))
    return from_dict(RunScore, values, str(file))


def write_outcome(folder: Path, outcome: RunOutcome) -> None:
    """Mark a run as ended."""
    write_json_atomic(folder / RESULT, dataclasses.asdict(outcome))


def best_evaluation(folder: Path, keep_best: bool) -> Mapping[str, Any]:
    """The evaluation whose weights a run's model has: the first of the best ones that have a score, or the last."""
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if is_evaluation(line)]
    scored = [line for line in lines if math.isfinite(line["score"])]
    return max(scored, key=lambda line: line["score"]) if keep_best and scored else lines[-1]


def begun_budget(folder: Path) -> Budget | None:
    """The budget that a run was begun with, None where it was not."""
    if not (folder / "run.json").is_file():
        return None
    stage = read_run(folder)["config"]["stages"][0]
    return from_dict(Budget, stage["budget"], str(folder / "run.json"))


def result_of(
    config: FinetuneConfig, runs: Sequence[RunScore], failed: Sequence[FailedRun], seconds: float
) -> FinetuneResult:
    """The learning rate with the best mean, and the best of its seeds.

    A rate at which a run failed is taken only where one failed at every rate: the mean of the others flatters it.
    """
    by_rate: dict[float, list[RunScore]] = {}
    for run in runs:
        by_rate.setdefault(run.lr, []).append(run)
    rates = {lr: spread_of([run.score for run in own]) for lr, own in by_rate.items()}
    unstable = {run.lr for run in failed}
    lr = max(rates, key=lambda rate: (rate not in unstable, rates[rate].mean))
    best = max(by_rate[lr], key=lambda run: run.score)
    return FinetuneResult(
        model=Path(config.out) / "model",
        metric=best.metric,
        lr=lr,
        seed=best.seed,
        score=best.score,
        over_seeds=rates[lr],
        rates=rates,
        runs=tuple(runs),
        seconds=seconds,
        failed=tuple(failed),
    )


def chosen_before(config: FinetuneConfig) -> tuple[float, int] | None:
    """Learning rate and seed of the model in OUT, None where there is none."""
    out = Path(config.out)
    if not all((out / name).is_file() for name in (RESULT, f"model/{CONFIG}", f"model/{TASK}", f"model/{HEAD}")):
        return None
    chosen = _read(out / RESULT, RESULT_FORMAT)
    return chosen["lr"], chosen["seed"]


def keep_model(config: FinetuneConfig, result: FinetuneResult, folder: Path) -> None:
    """Make a run's model OUT/model, and write OUT/result.json."""
    if (folder / "model").is_dir():
        with atomic_folder(result.model) as temporary:
            shutil.copytree(folder / "model", temporary, dirs_exist_ok=True)
    note = (
        "The scoring rows chose the learning rate, the evaluation whose weights are kept and the seed of the model, so "
        "the scores are a little high; the interval is over seeds and knows nothing of other rows. Rows that had no "
        "part in this tell the truth: terrazzo evaluate --model OUT --data TEST."
    )
    values = {
        "format": RESULT_FORMAT,
        "metric": result.metric,
        "lr": result.lr,
        "seed": result.seed,
        "score": result.score,
        **dataclasses.asdict(result.over_seeds),
        "rates": [{"lr": lr, **dataclasses.asdict(spread)} for lr, spread in result.rates.items()],
        "runs": [dataclasses.asdict(run) for run in result.runs],
        "failed": [dataclasses.asdict(run) for run in result.failed],
        "seconds": result.seconds,
        "note": note,
        "provenance": provenance(),
    }
    write_json_atomic(Path(config.out) / RESULT, values)


def prune(folder: Path, keep: Sequence[str]) -> None:
    """Delete what is in a run folder but for some names; a folder loses its name first, so none is found in part."""
    gone = folder / ".gone"
    for path in [gone, *folder.iterdir()] if folder.is_dir() else ():
        if path.name in keep or path.name == ".lock":
            continue
        if path.is_dir():
            shutil.rmtree(path if path == gone else path.rename(gone))
        elif path != gone:
            path.unlink()


def _read(file: Path, form: str | None = None, mend: str = "delete it to run this part again") -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: does not parse ({error}); {mend}") from None
    if not isinstance(values, dict):
        raise InputError(f"{file}: is not a JSON object; {mend}")
    if form is not None and values.get("format") != form:
        raise InputError(f"{file}: format is {values.get('format')!r}, not {form!r}; {mend}")
    return values
