"""all-MiniLM-L6-v2 fine-tuned on SST-2, MRPC, STS-B and CoNLL-2003, beside what is published of 6-layer encoders.

python -m benchmarks.minilm --data-root DATASETS --work WORK
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from benchmarks.finetuning import PUBLISHED
from benchmarks.result import RESULTS, Row, write
from recipes.runner import data_root
from recipes.tuning import fine_tuned, minilm
from terrazzo.errors import InputError
from terrazzo.tasks import Example
from terrazzo.tasks.finetune_config import FinetuneConfig
from terrazzo.tasks.model import load_task_model
from terrazzo.tasks.predict import Predictor
from terrazzo.tasks.rows import read_examples
from terrazzo.tasks.seeds import spread_of


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One data set.

    Args:
        judged: the file that the last weights of every seed are scored on.
        metric: of those that the task computes; name: as the published figures call it.
        published: key of the published figures, and what they are percent of.
        tuning: fields of the fine-tuning.
    """

    kind: str
    train: str
    judged: str
    metric: str
    name: str
    published: str
    fields: Mapping[str, str] = field(default_factory=dict)
    tuning: Mapping[str, Any] = field(default_factory=dict)


TRIALS = {
    "sst2": Trial(
        kind="label",
        train="glue/SST-2/train.tsv",
        judged="glue/SST-2/dev.tsv",
        metric="accuracy",
        name="accuracy",
        published="SST-2",
        fields={"text": "sentence"},
        tuning={"lr": (1e-4,), "epochs": 1.0, "batch_size": 64},
    ),
    "mrpc": Trial(
        kind="pair",
        train="glue/MRPC/train.tsv",
        judged="glue/MRPC/dev.tsv",
        metric="f1_binary",
        name="F1",
        published="MRPC",
        fields={"a": "#1 String", "b": "#2 String", "label": "Quality"},
        tuning={"lr": (2e-4,), "epochs": 5.0, "batch_size": 32, "options": {"metric": "f1_binary", "positive": "1"}},
    ),
    "stsb": Trial(
        kind="regression",
        train="glue/STS-B/train.tsv",
        judged="glue/STS-B/dev.tsv",
        metric="spearman",
        name="Spearman",
        published="STS-B",
        fields={"a": "sentence1", "b": "sentence2"},
        tuning={"lr": (1e-4,), "epochs": 4.0, "batch_size": 32},
    ),
    "conll2003": Trial(
        kind="tag",
        train="conll2003/eng.train",
        judged="conll2003/eng.testb",
        metric="f1",
        name="span F1",
        published="CoNLL-2003 F1",
        tuning={"lr": (3e-4,), "epochs": 3.0, "batch_size": 32},
    ),
}


def scores(name: str, root: Path, work: Path, seeds: int, threads: int) -> list[dict[str, float]]:
    """Every metric of each seed on the judged file; what `work` holds is not trained again."""
    trial = TRIALS[name]
    train, judged = (read_examples(root / file, trial.kind, trial.fields) for file in (trial.train, trial.judged))
    config = FinetuneConfig(
        model=str(minilm()),
        out=str(work / name),
        task=trial.kind,
        seeds=seeds,
        keep_best=False,
        threads=threads,
        device="cpu",
        **trial.tuning,
    )
    folders = fine_tuned(config, train, judged, print)
    return [_judged(folder, judged) for _, folder in sorted(folders.items())]


def _judged(folder: Path, rows: list[Example]) -> dict[str, float]:
    loaded = load_task_model(folder)
    results = Predictor(loaded.model, loaded.tokenizer, loaded.max_len).predict(rows)
    return dict(loaded.model.task.score(rows, results).values)


def row(number: int, name: str, found: list[dict[str, float]]) -> Row:
    """The mean over seeds beside the range of the published figures."""
    trial = TRIALS[name]
    values = [100 * one[trial.metric] for one in found]
    figures = {p["model"]: p["figures"][trial.published] for p in PUBLISHED if trial.published in p["figures"]}
    spread = spread_of(values)
    range_text = "; ".join(f"{model}: {value}" for model, value in figures.items())
    return Row(
        id=f"M{number}",
        metric=f"all-MiniLM-L6-v2 fine-tuned on {trial.published.removesuffix(' F1')}, {trial.name}",
        peer=f"published: {range_text}",
        floor=min(figures.values()),
        goal=max(figures.values()) if len(figures) > 1 else None,
        value=fmean(values),
        low=spread.low,
        high=spread.high,
        unit="%",
        note=f"{len(values)} seeds, spread {stdev(values):.2f}; last weights, judged on {trial.judged}",
    )


def main() -> None:
    """Fine-tune what is not there yet and write results/minilm.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/minilm"), help="for the models; finished ones stay")
    parser.add_argument("--tasks", nargs="+", choices=TRIALS, default=list(TRIALS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only-train", action="store_true", help="write no results")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    root = data_root(options.data_root)
    if root is None:
        raise InputError("give --data-root, or set TERRAZZO_DATA, to the folder that holds glue and conll2003")
    found = {name: scores(name, root, options.work, options.seeds, options.threads) for name in options.tasks}
    if options.only_train:
        return
    rows = [row(list(TRIALS).index(name) + 1, name, by_seed) for name, by_seed in found.items()]
    tuning = {name: dict(TRIALS[name].tuning) for name in found}
    write("minilm", rows, {"scores_by_seed": found, "tuning": tuning, "published": PUBLISHED}, options.out)


if __name__ == "__main__":
    main()
