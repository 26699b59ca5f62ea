"""The demo: text -> tokenizer -> shards -> MosaicBERT pretraining -> a labelled task -> report, on two cores in
minutes.

`python -m recipes.wordnet_demo [--out FOLDER] [--seconds N]`. Every step is also one command, which is printed
before it.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC

from recipes.tuning import accuracy, answers, untrained_like
from recipes.wordnet import Gloss, fetch, read_glosses, write_corpus
from terrazzo.config import read_file
from terrazzo.data import PrepareConfig, prepare
from terrazzo.provenance import provenance, write_json_atomic
from terrazzo.show import Report, show_corpus, stage_progress
from terrazzo.tasks import Example
from terrazzo.tasks.finetune import Hooks, finetune, log_metrics
from terrazzo.tasks.finetune_config import FinetuneConfig
from terrazzo.train import RunConfig, default_hooks, resolve, train, write_report
from terrazzo.train.hooks import Hook, Line

SEEDS = (0, 1, 2)
LABELS_PER_CLASS = 16
VOCABULARY = 4096
CONFIG = Path(__file__).with_name("wordnet_demo.toml")


def run_config(data: Path, out: Path, seconds: float) -> RunConfig:
    """The run of wordnet_demo.toml, with a schedule that ends after `seconds`."""
    values = {**read_file(CONFIG), "data": str(data), "out": str(out)}
    return resolve(values, [f"budget.seconds={seconds}"], CONFIG.name)


Rows = list[Example]


def tfidf_accuracy(train_rows: Rows, test_rows: Rows) -> float:
    """The classical peer: word 1- and 2-grams, TF-IDF, a linear support vector machine."""
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    labels = [row.target for row in train_rows]
    model = LinearSVC().fit(vectors.fit_transform([row.text for row in train_rows]), labels)
    guesses = model.predict(vectors.transform([row.text for row in test_rows]))
    return float(np.mean(guesses == np.asarray([row.target for row in test_rows])))


def few_of(rows: Rows, per_class: int, seed: int) -> Rows:
    """`per_class` random rows of each class."""
    shuffled = rows[:]
    random.Random(seed).shuffle(shuffled)
    by_class: dict[Any, Rows] = {}
    for row in shuffled:
        by_class.setdefault(row.target, []).append(row)
    return [row for members in by_class.values() for row in members[:per_class]]


def fine_tuned_accuracy(
    model: Path, out: Path, train_rows: Rows, test_rows: Rows, seed: int, tuning: dict[str, Any], hooks: Hooks
) -> float:
    """Accuracy on the test rows of one fine-tuning; the last weights count, so no test row chooses anything."""
    shutil.rmtree(out, ignore_errors=True)
    config = FinetuneConfig(
        model=str(model), out=str(out), seeds=1, seed=seed, lr=(1e-3,), max_len=64, keep_best=False, **tuning
    )
    result = finetune(config, train=train_rows, eval=test_rows[:256], hooks=hooks)
    if result is None:
        raise KeyboardInterrupt
    return accuracy(test_rows, answers(result.model, test_rows))


def compare(model: Path, glosses: list[Gloss], out: Path, console: Console) -> dict[str, dict[str, list[float]]]:
    """Accuracy of pretrained, untrained and TF-IDF on noun lexicographer files, with few and with all labels."""
    nouns = [gloss for gloss in glosses if gloss.is_noun]
    training = [Example(text=g.definition, target=g.lexname) for g in nouns if not g.is_test]
    testing = [Example(text=g.definition, target=g.lexname) for g in nouns if g.is_test]
    results: dict[str, dict[str, list[float]]] = {}
    for name, seeds in (("few", SEEDS), ("all", SEEDS[:1])):
        tuning = {"epochs": 12.0, "batch_size": 32} if name == "few" else {"epochs": 1.0, "batch_size": 64}
        for seed in seeds:
            subset = few_of(training, LABELS_PER_CLASS, seed) if name == "few" else training
            scores = {"TF-IDF + linear": tfidf_accuracy(subset, testing)}
            fresh = untrained_like(model, out / f"fresh-{seed}", seed)
            with stage_progress() as progress:
                for kind, start in (("without pretraining", fresh), ("pretrained", model)):
                    hooks = partial(_listeners, progress, f"{kind}, seed {seed}")
                    scores[kind] = fine_tuned_accuracy(start, out / "tuned", subset, testing, seed, tuning, hooks)
            for kind, value in scores.items():
                results.setdefault(name, {}).setdefault(kind, []).append(value)
            shown = ", ".join(f"{kind} {value:.1%}" for kind, value in scores.items())
            console.print(f"{len(subset):,} labelled glosses, seed {seed}: {shown}", highlight=False)
    return results


class Steps:
    """Shows how far a fine-tuning is."""

    def __init__(self, progress: Report, name: str, total: int | None) -> None:
        self._progress, self._name, self._total = progress, name, total

    def on_step(self, line: Line) -> None:
        self._progress(self._name, line["step"], self._total, "steps")

    def on_evaluation(self, line: Line) -> None:
        pass

    def on_message(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


def _listeners(progress: Report, name: str, config: RunConfig) -> Callable[[Path], Sequence[Hook]]:
    steps = Steps(progress, name, config.stages[0].budget.steps)
    return lambda folder: [*log_metrics(folder), steps]


def show(results: dict[str, dict[str, list[float]]], num_labels: dict[str, int], console: Console) -> None:
    """The closing table."""
    table = Table(title="accuracy over 26 noun lexicographer files, test glosses never seen", title_justify="left")
    table.add_column("labelled glosses")
    kinds = ("pretrained", "without pretraining", "TF-IDF + linear")
    for kind in kinds:
        table.add_column(kind, justify="right")
    for name, scores in results.items():
        cells = [
            f"{np.mean(v):.1%} ± {np.std(v):.1%}" if len(v) > 1 else f"{v[0]:.1%}" for v in map(scores.get, kinds) if v
        ]
        table.add_row(f"{num_labels[name]:,} ({len(scores['pretrained'])} seed(s))", *cells)
    console.print(table)


def main() -> None:
    """Run the demo from scratch in `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--seconds", type=float, default=210.0, help="wall-clock budget of pretraining")
    arguments = parser.parse_args()
    out, begin = arguments.out, time.monotonic()
    console = Console()
    for name in ("data", "run", "tuning"):
        shutil.rmtree(out / name, ignore_errors=True)

    console.rule("[bold]1  text", align="left")
    glosses = read_glosses(fetch(out / "download"))
    corpus_file = out / "wordnet.jsonl"
    count = write_corpus(glosses, corpus_file)
    console.print(f"{count:,} glosses with their examples from WordNet 3.0 -> {corpus_file}", highlight=False)

    console.rule("[bold]2  tokenizer and shards", align="left")
    console.print(
        f"$ terrazzo prepare {corpus_file} --out {out}/data --vocab-size {VOCABULARY}", style="dim", highlight=False
    )
    with stage_progress() as progress:
        corpus = prepare([corpus_file], out / "data", PrepareConfig(vocab_size=VOCABULARY), progress=progress)
    show_corpus(corpus)

    console.rule("[bold]3  pretraining", align="left")
    config = run_config(out / "data", out / "run", arguments.seconds)
    console.print(
        f"$ terrazzo pretrain --data {out}/data --out {out}/run --config recipes/wordnet_demo.toml", style="dim"
    )
    model = train(config, hooks=default_hooks(config))
    if model is None:
        console.print("stopped before the end; run it again")
        return

    console.rule("[bold]4  a task with few labels", align="left")
    results = compare(model, glosses, out / "tuning", console)

    console.rule("[bold]5  result", align="left")
    nouns = sum(g.is_noun and not g.is_test for g in glosses)
    num_labels = {"few": 26 * LABELS_PER_CLASS, "all": nouns}
    show(results, num_labels, console)
    seconds = time.monotonic() - begin
    summary: dict[str, Any] = {
        "accuracy": results,
        "labels": num_labels,
        "seconds": seconds,
        "provenance": provenance(),
    }
    write_json_atomic(out / "result.json", summary)
    console.print(f"report  {write_report(out / 'run')}\nmodel   {model}\ntook    {seconds:.0f} s", highlight=False)


if __name__ == "__main__":
    main()
