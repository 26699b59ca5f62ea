"""German tasks: encoders pretrained with and without the filter, and equal ones without pretraining, fine-tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.runner import Context
from recipes.suites import Encoders, Outcomes, Trial, described, gain, scores, try_arms
from recipes.tuning import untrained_like

DOWNSTREAM = Trial(
    suite="german",
    procedures={
        "germeval14": {"lr": [1e-3], "train_rows": 2200, "eval_rows": 2000, "epochs": 6, "batch_size": 16},
        "germeval18-coarse": {"lr": [1e-3], "train_rows": 2000, "eval_rows": 2000, "epochs": 3},
        "10kgnad": {"lr": [1e-3], "epochs": 8, "max_len": 64},
    },
)
SMOKE = Trial(suite="german", procedures={task: {"epochs": 1, "batch_size": 16} for task in DOWNSTREAM.procedures})


def tried(
    trial: Trial, models: Mapping[str, Sequence[Path]], data_root: Path, workers: int, context: Context
) -> dict[str, Any]:
    """Fine-tune the arms `filtered` and `raw` of `models` and untrained ones; returns the metrics of the claims."""
    tasks = tuple(trial.procedures)
    folders = {name: list(members) for name, members in models.items()}
    folders["untrained"] = [
        untrained_like(model, context.work / "untrained" / str(seed), seed)
        for seed, model in enumerate(models["filtered"])
    ]
    arms = {name: Encoders(members, data_root, tasks) for name, members in folders.items()}
    outcomes: Outcomes = try_arms(trial, arms, context.work / "tasks", workers, context.log)
    context.record("tasks", described(outcomes))
    return {
        **scores(outcomes),
        **gain("pretraining", outcomes, "filtered", "untrained"),
        **gain("filtering", outcomes, "filtered", "raw"),
    }


def invented_rows(texts: Sequence[str], root: Path) -> Path:
    """A data root with rows of every task, for the smoke tier; answers are single words of the texts."""
    texts = [text.split(".")[0] for text in texts[:64]]
    halves = {"train": texts[:32], "test": texts[32:]}
    for part, rows in halves.items():
        file = "training" if part == "train" else part
        _write(root / "germeval2014" / "Wiki_News" / f"{part}.tsv", [_tagged(text) for text in rows])
        _write(
            root / "germeval2018" / f"germeval2018.{file}.txt",
            [f"{t}\t{_side(t, 'OFFENSE', 'OTHER')}\t-" for t in rows],
        )
        _write(root / "10kgnad" / f"{part}.csv", [f"{_side(text, 'Web', 'Sport')};'{text}'" for text in rows])
    return root


def _tagged(text: str) -> str:
    words = [
        f"{number}\t{word}\t{'B-LOC' if word == 'Stadt' else 'O'}\tO" for number, word in enumerate(text.split(), 1)
    ]
    return "\n".join(["#\tinvented", *words, ""])


def _side(text: str, one: str, other: str) -> str:
    return one if len(text) % 2 else other


def _write(file: Path, lines: Sequence[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
