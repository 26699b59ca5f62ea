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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC

from recipes.gloss_classifier import accuracy, fine_tune
from recipes.wordnet import Gloss, fetch, read_glosses, write_corpus
from terrazzo.checkpoint import load_model
from terrazzo.config import read_file
from terrazzo.data import PrepareConfig, prepare
from terrazzo.nn import Encoder, MaskedLM
from terrazzo.provenance import provenance, write_json_atomic
from terrazzo.show import Report, show_corpus, stage_progress
from terrazzo.train import RunConfig, default_hooks, resolve, train, write_report

SEEDS = (0, 1, 2)
LABELS_PER_CLASS = 16
VOCABULARY = 4096
CONFIG = Path(__file__).with_name("wordnet_demo.toml")


def run_config(data: Path, out: Path, seconds: float) -> RunConfig:
    """The run of wordnet_demo.toml, with a schedule that ends after `seconds`."""
    values = {**read_file(CONFIG), "data": str(data), "out": str(out)}
    return resolve(values, [f"budget.seconds={seconds}"], CONFIG.name)


def tfidf_accuracy(train_rows: list[tuple[str, int]], test_rows: list[tuple[str, int]]) -> float:
    """The classical peer: word 1- and 2-grams, TF-IDF, a linear support vector machine."""
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = LinearSVC().fit(vectors.fit_transform([t for t, _ in train_rows]), [y for _, y in train_rows])
    guesses = model.predict(vectors.transform([t for t, _ in test_rows]))
    return float(np.mean(guesses == np.asarray([y for _, y in test_rows])))


def few_of(rows: list[tuple[str, int]], per_class: int, seed: int) -> list[tuple[str, int]]:
    """`per_class` random rows of each class."""
    shuffled = rows[:]
    random.Random(seed).shuffle(shuffled)
    by_class: dict[int, list[tuple[str, int]]] = {}
    for row in shuffled:
        by_class.setdefault(row[1], []).append(row)
    return [row for members in by_class.values() for row in members[:per_class]]


def load_encoder(folder: Path, fresh: bool, seed: int) -> Encoder:
    """The pretrained encoder, or one of the same shape with fresh weights."""
    model = load_model(folder)
    assert isinstance(model, MaskedLM)
    if not fresh:
        return model.encoder
    torch.manual_seed(seed)
    return Encoder(model.config)


def compare(model: Path, glosses: list[Gloss], console: Console) -> dict[str, dict[str, list[float]]]:
    """Accuracy of pretrained, untrained and TF-IDF on noun lexicographer files, with few and with all labels."""
    names = sorted({g.lexname for g in glosses if g.is_noun})
    rows = [(g.definition, names.index(g.lexname), g.is_test) for g in glosses if g.is_noun]
    training = [(text, label) for text, label, test in rows if not test]
    testing = [(text, label) for text, label, test in rows if test]
    results: dict[str, dict[str, list[float]]] = {}
    for name, seeds in (("few", SEEDS), ("all", SEEDS[:1])):
        for seed in seeds:
            subset = few_of(training, LABELS_PER_CLASS, seed) if name == "few" else training
            scores = {"TF-IDF + linear": tfidf_accuracy(subset, testing)}
            passes, batch = (12, 32) if name == "few" else (1, 64)
            with stage_progress() as progress:
                for kind in ("without pretraining", "pretrained"):
                    classifier = fine_tune(
                        load_encoder(model, fresh=kind == "without pretraining", seed=seed),
                        model,
                        subset,
                        len(names),
                        passes=passes,
                        batch=batch,
                        seed=seed,
                        progress=partial(_show_progress, progress, f"{kind}, seed {seed}"),
                    )
                    scores[kind] = accuracy(classifier, testing)
            for kind, value in scores.items():
                results.setdefault(name, {}).setdefault(kind, []).append(value)
            shown = ", ".join(f"{kind} {value:.1%}" for kind, value in scores.items())
            console.print(f"{len(subset):,} labelled glosses, seed {seed}: {shown}", highlight=False)
    return results


def _show_progress(progress: Report, name: str, done: int, total: int) -> None:
    progress(name, done, total, "steps")


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
    for name in ("data", "run"):
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
    results = compare(model, glosses, console)

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
