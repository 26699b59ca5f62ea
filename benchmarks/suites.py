"""Suites without training, similarity and grammar, and answers to questions, for which there is no suite.

python -m benchmarks.suites --data-root DATASETS --work WORK --mlm RUN/model     # what WORK holds is not run again
python -m benchmarks.suites --data-root DATASETS --work WORK --mlm RUN/model --only sts blimp

Similarity and questions take all-MiniLM-L6-v2. Minimal pairs need a head on masked tokens, which MiniLM's package
lacks: --mlm names what `terrazzo pretrain` or the recipe bidirectional-survey left.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from benchmarks.result import RESULTS, Row, write
from recipes.runner import data_root
from recipes.tuning import answers, fine_tuned, minilm
from terrazzo.checkpoint import load_config
from terrazzo.config import read_file, to_dict
from terrazzo.errors import InputError
from terrazzo.tasks import Example
from terrazzo.tasks.finetune_config import FinetuneConfig
from terrazzo.tasks.model import load_task_model
from terrazzo.tasks.rows import read_examples
from terrazzo.tasks.seeds import spread_of
from terrazzo.tasks.suites import SuiteResult, run_suite
from terrazzo.tasks.suites.result import TaskOutcome

PARTS = ("sts", "blimp", "squad")
SQUAD = "squad/dev-v1.1-rebuilt.json"
#: Articles of SQuAD's dev file that are learned from, questions drawn of them, and questions of the others that judge.
ARTICLES, TRAINED, JUDGED = 38, 2000, 1000
SEEDS = 3


def sts(root: Path, work: Path) -> tuple[list[Row], Any]:
    """Similarity by cosine, nothing trained."""
    result = run_suite("sts", minilm(), root, work / "sts", threads=1, device="cpu", progress=print)
    rows = [
        _scored(
            f"U{number}",
            f"all-MiniLM-L6-v2 as it is, {task.title}, Spearman",
            task,
            "mean-pooled encodings, nothing trained; `terrazzo evaluate --suite sts`",
        )
        for number, task in enumerate(result.tasks, 1)
    ]
    return rows, _recorded(result, "all-MiniLM-L6-v2")


def blimp(root: Path, work: Path, model: Path | None) -> tuple[list[Row], Any]:
    """Minimal pairs of grammar by pseudo-likelihood, nothing trained."""
    metric = "BLiMP, accuracy by pseudo-likelihood, an encoder pretrained by terrazzo"
    if model is None:
        why = "not run (--mlm names no pretrained folder)"
        return [Row(id="U8", metric=metric, peer="", floor=None, goal=None, unit="%", status=why)], None
    result = run_suite("blimp", model, root, work / "blimp", threads=1, device="cpu", progress=print)
    (task,) = result.tasks
    row = _scored("U8", metric, task, f"chance is 50; {described(model)}; `terrazzo evaluate --suite blimp`")
    return [row], _recorded(result, described(model))


def _scored(id_: str, metric: str, task: TaskOutcome, note: str) -> Row:
    """A task's score with its interval, in percent."""
    low, high = (None if end is None else 100 * end for end in (task.low, task.high))
    return Row(
        id=id_,
        metric=metric,
        peer="",
        floor=None,
        goal=None,
        value=100 * task.score,
        low=low,
        high=high,
        unit="%",
        note=f"{note}; {_counted(task.rows)}",
    )


def squad(root: Path, work: Path) -> tuple[list[Row], Any]:
    """Answers as stretches of a context, fine-tuned on some articles and judged on others."""
    document = read_file(root / SQUAD)
    articles = [article["title"] for article in document["data"]]
    contexts = {
        " ".join(paragraph["context"].split()): number
        for number, article in enumerate(document["data"])
        for paragraph in article["paragraphs"]
    }
    rows = read_examples(root / SQUAD, "span")
    number_of = [contexts[" ".join(row.text.split())] for row in rows]
    train = [row for row, number in zip(rows, number_of, strict=True) if number < ARTICLES]
    others = [row for row, number in zip(rows, number_of, strict=True) if number >= ARTICLES]
    judged = random.Random(0).sample(others, JUDGED)
    found = [_squad_seed(train, judged, work / "squad", seed) for seed in range(SEEDS)]
    rows_ = [
        _squad_row("U9", "F1", [one["f1"] for one in found], len(articles)),
        _squad_row("U10", "exact match", [one["exact_match"] for one in found], len(articles)),
    ]
    return rows_, found


def _squad_seed(train: Sequence[Example], judged: Sequence[Example], work: Path, seed: int) -> dict[str, float]:
    drawn = random.Random(seed).sample(list(train), TRAINED)
    config = FinetuneConfig(
        model=str(minilm()),
        out=str(work / str(seed)),
        task="span",
        seeds=1,
        seed=seed,
        lr=(3e-4,),
        epochs=2.0,
        batch_size=16,
        keep_best=False,
        threads=1,
        device="cpu",
    )
    folder = fine_tuned(config, drawn, judged[:100], print)[seed]
    task = load_task_model(folder).model.task
    return dict(task.score(judged, answers(folder, judged)).values)


def _squad_row(id_: str, name: str, values: Sequence[float], articles: int) -> Row:
    spread = spread_of([100 * value for value in values])
    return Row(
        id=id_,
        metric=f"all-MiniLM-L6-v2 fine-tuned on {TRAINED:,} questions of SQuAD 1.1, {name}",
        peer="",
        floor=None,
        goal=None,
        value=100 * fmean(values),
        low=spread.low,
        high=spread.high,
        unit="%",
        note=f"{len(values)} seeds, spread {100 * stdev(values):.2f}; SQuAD's dev file alone: questions of its first "
        f"{ARTICLES} articles are learned from, {JUDGED:,} of the last {articles - ARTICLES} judge",
    )


def described(model: Path) -> str:
    """A pretrained folder in a few words, from what it says of itself."""
    shape, trained = load_config(model), read_file(model / "terrazzo.json")["trained"]
    return (
        f"{shape.depth} layers of {shape.width}, vocabulary {shape.vocab_size:,}, {trained['tokens']:,} tokens of "
        "pretraining"
    )


def _recorded(result: SuiteResult, model: str) -> dict[str, Any]:
    """The suite's own result, without folders of this machine; the benchmark's file says where it was run."""
    values: dict[str, Any] = to_dict(result)
    return {**{name: value for name, value in values.items() if name != "provenance"}, "model": model}


def _counted(rows: Any) -> str:
    return ", ".join(f"{count:,} rows of {part}" for part, count in dict(rows).items())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is not there yet and write results/suites.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/suites"))
    parser.add_argument("--mlm", type=Path, help="a pretrained folder with its head on masked tokens")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    root = data_root(options.data_root)
    if root is None:
        raise InputError("give --data-root, or set TERRAZZO_DATA, to the folder that holds glue, sick, blimp and squad")
    runs = {
        "sts": lambda: sts(root, options.work),
        "blimp": lambda: blimp(root, options.work, options.mlm),
        "squad": lambda: squad(root, options.work),
    }
    found = {name: runs[name]() for name in options.only}
    rows = [row for some, _ in found.values() for row in some]
    write("suites", rows, {name: details for name, (_, details) in found.items()}, options.out)


if __name__ == "__main__":
    main()
