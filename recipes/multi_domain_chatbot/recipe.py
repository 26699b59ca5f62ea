"""One model for the five problems of CLINC150, against a model for each; then a sixth problem added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from recipes.claims import Tier
from recipes.multi_domain_chatbot.memory import disk_bytes, resident_bytes
from recipes.multi_domain_chatbot.problems import Rows, clinc, invented
from recipes.runner import Context
from recipes.tuning import accuracy, answers, fine_tuned, minilm, untrained
from terrazzo.objectives import SupervisedConfig
from terrazzo.tasks import Example, Result
from terrazzo.tasks.finetune_config import FinetuneConfig

SOURCE = "CLINC150, https://github.com/clinc/oos-eval"
#: The sixth problem: which of the five a question belongs to.
ROUTER = "which"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One tier.

    Args:
        file: of CLINC150; data_small.json has half of the training rows.
        tuning: what all arms share.
        added_rows: rows that teach the sixth problem.
    """

    file: str = "data_small.json"
    tuning: dict[str, Any] = field(default_factory=dict)
    added_rows: int = 2000
    seeds: int = 3


SETTINGS = {
    "smoke": Settings(tuning={"lr": (1e-2,), "epochs": 8.0, "batch_size": 8}, added_rows=24, seeds=2),
    "small": Settings(tuning={"lr": (2e-4,), "epochs": 4.0}),
    "paper": Settings(file="data_full.json", tuning={"lr": (2e-4,), "epochs": 6.0}, seeds=5),
}


def run(tier: Tier, context: Context) -> dict[int, dict[str, float]]:
    """Train the one, with both losses, and the five; compare accuracy, disk and memory; add a problem to the one."""
    settings = SETTINGS[tier]
    context.record("config", vars(settings))
    if tier == "smoke":
        rows = invented()
        model = untrained(context.work / "model", [row.text for row in rows.train])
    else:
        rows, model = clinc(context.data("clinc150", SOURCE) / settings.file), minilm()
    problems = sorted({str(row.problem) for row in rows.train})
    context.log(f"{len(problems)} problems, {len(rows.train)} rows to train on, {len(rows.test)} to test")

    base = FinetuneConfig(model=str(model), out="", seeds=settings.seeds, **settings.tuning)
    arms = {"one": _one(base, rows, "own", context), "one_all": _one(base, rows, "all", context)}
    five = {problem: _single(base, rows.of(problem), problem, context) for problem in problems}
    metrics: dict[int, dict[str, float]] = {}
    for seed in arms["one"]:
        found = {name: answers(folders[seed], rows.test) for name, folders in arms.items()}
        metrics[seed] = _accuracies(rows, problems, found, {p: folders[seed] for p, folders in five.items()})
    first = min(metrics)
    single = [five[problem][first] for problem in problems]
    costs = _costs(arms["one_all"][first], single, problems, rows.test[0].text)
    grown = _grown(base, arms["one_all"], rows, settings, context)
    return {seed: {**own, **costs, **grown.get(seed, {})} for seed, own in metrics.items()}


def _one(base: FinetuneConfig, rows: Rows, problem_loss: Literal["own", "all"], context: Context) -> dict[int, Path]:
    config = replace(
        base,
        out=str(context.work / f"one-{problem_loss}"),
        task="multi",
        loss=SupervisedConfig(problem_loss=problem_loss),
    )
    return fine_tuned(config, rows.train, rows.dev, context.log)


def _single(base: FinetuneConfig, rows: Rows, problem: str, context: Context) -> dict[int, Path]:
    config = replace(base, out=str(context.work / f"only-{problem}"), task="label")
    return fine_tuned(config, rows.train, rows.dev, context.log)


def _accuracies(
    rows: Rows, problems: Sequence[str], one: Mapping[str, list[Result]], five: Mapping[str, Path]
) -> dict[str, float]:
    """Mean over problems, as the paper counts: every problem alike. The paper's loss is over all classes."""
    by_problem = {problem: rows.of(problem).test for problem in problems}
    separate = {problem: accuracy(own, answers(five[problem], own)) for problem, own in by_problem.items()}
    means = {}
    for name, results in one.items():
        given = dict(zip(map(id, rows.test), results, strict=True))
        means[name] = fmean(accuracy(own, [given[id(row)] for row in own]) for own in by_problem.values())
    five_mean = fmean(separate.values())
    return {
        "one_accuracy": means["one_all"],
        "one_accuracy_own_loss": means["one"],
        "five_accuracy": five_mean,
        "accuracy_difference": means["one_all"] - five_mean,
        "own_loss_difference": means["one"] - means["one_all"],
        "probability_outside": _outside(rows, one["one_all"]),
        **{f"five_accuracy_{problem}": value for problem, value in separate.items()},
    }


def _outside(rows: Rows, results: Sequence[Result]) -> float:
    """The largest probability that a row's answer gives to a class which its problem has not."""
    classes: dict[str | None, set[str]] = {}
    for row in rows.train:
        classes.setdefault(row.problem, set()).add(str(row.target))
    strange = [
        probability
        for row, result in zip(rows.test, results, strict=True)
        for label, probability in (result.probabilities or {}).items()
        if label not in classes[row.problem]
    ]
    return max(strange, default=0.0)


def _costs(one: Path, five: Sequence[Path], problems: Sequence[str], text: str) -> dict[str, float]:
    disk = disk_bytes([one]), disk_bytes(five)
    memory = (
        resident_bytes([(problem, one) for problem in problems], text),
        resident_bytes([("", folder) for folder in five], text),
    )
    return {
        "disk_one": disk[0],
        "disk_five": disk[1],
        "disk_share": disk[0] / disk[1],
        "memory_one": memory[0],
        "memory_five": memory[1],
        "memory_share": memory[0] / memory[1],
    }


def _grown(
    base: FinetuneConfig, models: Mapping[int, Path], rows: Rows, settings: Settings, context: Context
) -> dict[int, dict[str, float]]:
    """A problem more on a frozen encoder: what it reaches, and how far it moves the answers of the others."""
    found = {}
    chosen = _as_router(rows.train[:: max(1, len(rows.train) // settings.added_rows)])
    for seed, folder in models.items():
        config = replace(
            base,
            model=str(folder),
            out=str(context.work / f"grown-{seed}"),
            task="multi",
            freeze="encoder",
            seeds=1,
            lr=(1e-2,),
            epochs=3.0,
        )
        (grown,) = fine_tuned(config, chosen, _as_router(rows.dev[::10] or rows.dev), context.log).values()
        pairs = zip(answers(folder, rows.test), answers(grown, rows.test), strict=True)
        test = _as_router(rows.test)
        found[seed] = {
            "largest_change_of_others": max(_change(before, after) for before, after in pairs),
            "added_accuracy": accuracy(test, answers(grown, test)),
        }
    return found


def _as_router(rows: Sequence[Example]) -> list[Example]:
    return [replace(row, target=row.problem, problem=ROUTER) for row in rows]


def _change(before: Result, after: Result) -> float:
    assert before.probabilities is not None and after.probabilities is not None
    assert before.probabilities.keys() == after.probabilities.keys()
    return max(abs(before.probabilities[label] - after.probabilities[label]) for label in before.probabilities)
