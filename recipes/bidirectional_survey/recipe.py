"""A masked encoder against a causal model of the same shape: same tokens, same parameters, same fine-tuning."""

from __future__ import annotations

import math
import multiprocessing
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from recipes.arms import arm, curve, per_seed, spread, train_arms, unigram_loss
from recipes.bidirectional_survey.finetuning import Finetuning, Tuning, accuracy, finetuning
from recipes.bidirectional_survey.rows import GLUE, Rows, glue, invented
from recipes.claims import Tier
from recipes.runner import Context
from recipes.wikipedia import SOURCE, prepared_part
from terrazzo.data import Corpus
from terrazzo.nn import parameter_count
from terrazzo.objectives import CLMConfig, MLMConfig
from terrazzo.optim import AdamWConfig, MuonConfig
from terrazzo.tasks.heads import Pooling
from terrazzo.testing import TINY_MODEL, tiny_corpus
from terrazzo.train import Budget, Init, RunConfig, Sampling, Stage
from terrazzo.train.metrics import read_metrics
from terrazzo.train.stage import FromFolder

RESULTS = Path(__file__).with_name("results")
OBJECTIVES: dict[str, MLMConfig | CLMConfig] = {"mlm": MLMConfig(), "clm": CLMConfig()}
#: what is fine-tuned: a pretrained model, or none, and how its hidden states become one vector
READINGS: dict[str, tuple[str | None, Pooling]] = {
    "mlm": ("mlm", "mean"),
    "clm_mean": ("clm", "mean"),
    "clm_last": ("clm", "last"),
    "scratch": (None, "mean"),
}
LABELS = {
    "mlm": "masked, mean of all tokens",
    "clm_mean": "causal, mean of all tokens",
    "clm_last": "causal, last token",
    "scratch": "untrained bidirectional, mean of all tokens",
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A tier.

    Args:
        model: both arms' shape; `causal` is all that differs.
        sampling: the same documents in the same order for both.
        tokens: of pretraining, special tokens included.
        rows: most training rows of a task.
        seeds: of fine-tuning; each arm is pretrained once, with the first.
        workers: runs at a time, one thread each; 0 runs them here.
    """

    model: Init
    sampling: Sampling
    tokens: int
    tuning: Tuning
    megabytes: float = 14.0
    vocab_size: int = 2048
    rows: int = 2000
    seeds: tuple[int, ...] = (0, 1, 2)
    eval_tokens: int = 32_768
    workers: int = 2
    run: dict[str, Any] = field(default_factory=lambda: {"device": "cpu"})


_SMALL = {"width": 128, "depth": 4, "num_heads": 4, "mlp_width": 344, "max_len": 128, "dropout": 0.0, "init_std": 0.05}
SETTINGS = {
    "smoke": Settings(
        model=Init(fields={**TINY_MODEL, "dropout": 0.0}),
        sampling=Sampling(max_len=32, batch_tokens=512, workers=0),
        tokens=2048,
        tuning=Tuning(epochs=0.5, max_len=32),
        rows=32,
        seeds=(0, 1),
        eval_tokens=512,
        workers=0,
    ),
    "small": Settings(
        model=Init(fields=_SMALL),
        sampling=Sampling(max_len=128, batch_tokens=1024, workers=0),
        tokens=2_000_000,
        tuning=Tuning(),
    ),
    "paper": Settings(
        model=Init(size="base", fields={"gated": False, "mlp_in_bias": True}),
        sampling=Sampling(max_len=512, batch_tokens=131_072),
        tokens=130_000_000_000,
        tuning=Tuning(optimizer=AdamWConfig(lr=3e-5), batch_size=32, max_len=512),
        megabytes=1e9,
        vocab_size=32_768,
        rows=10**9,
        eval_tokens=1 << 20,
        workers=0,
        run={"device": "auto", "threads": None, "checkpoint_every": 1000},
    ),
}


def run(tier: Tier, context: Context) -> dict[int, dict[str, float]]:
    """Pretrain both, fine-tune every reading of them on both tasks, hold the means against each other."""
    settings = SETTINGS[tier]
    context.record("config", vars(settings))
    if tier == "smoke":
        shutil.rmtree(context.work / "data", ignore_errors=True)
        corpus, tasks = tiny_corpus(context.work / "data"), invented(context.work, settings.rows)
    else:
        corpus = prepared_part(
            context.data("enwiki", SOURCE),
            context.work,
            megabytes=settings.megabytes,
            vocab_size=settings.vocab_size,
            paragraphs=True,
        )
        tasks = glue(context.data("glue", GLUE), context.work, settings.rows)
    models = _pretrain(settings, corpus, context)
    scores = _finetune(settings, corpus, models, tasks, context)
    context.record("accuracy", {f"{task} {reading}": values for (task, reading), values in scores.items()})
    table = _table(settings, scores)
    context.log("\n" + table)
    if tier == "small":
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "table.md").write_text(table, encoding="utf-8")
    return per_seed(settings.seeds, _metrics(settings, corpus, models, scores))


def _pretrain(settings: Settings, corpus: Corpus, context: Context) -> dict[str, RunConfig]:
    """Train both models on the same documents in the same order."""
    configs = {}
    for name, objective in OBJECTIVES.items():
        stage = Stage(
            model=_shape(settings, causal=name == "clm"),
            objective=objective,
            sampling=settings.sampling,
            optimizer=MuonConfig(),
            budget=Budget(tokens=settings.tokens),
        )
        fields = {"eval_tokens": settings.eval_tokens, **settings.run}
        configs[name] = arm(context.work, name, corpus.path, stage, settings.seeds[0], **fields)
    train_arms(list(configs.values()), settings.workers, context.log)
    context.record("pretraining", {name: curve(config) for name, config in configs.items()})
    return configs


def _shape(settings: Settings, causal: bool) -> Init:
    model = settings.model
    return Init(family=model.family, size=model.size, fields={**model.fields, "causal": causal})


def _finetune(
    settings: Settings, corpus: Corpus, models: Mapping[str, RunConfig], tasks: Mapping[str, Rows], context: Context
) -> dict[tuple[str, str], list[float]]:
    """Accuracy over seeds of every task and reading."""
    wanted: dict[tuple[str, str], list[Finetuning]] = {}
    for task, rows in tasks.items():
        for reading, (model, pooling) in READINGS.items():
            folder = None if model is None else FromFolder(path=str(Path(models[model].out) / "model"))
            wanted[task, reading] = [
                finetuning(
                    context.work,
                    f"{task}-{reading}",
                    model=folder or _shape(settings, causal=False),
                    tokenizer=corpus.path / "tokenizer.json",
                    rows=rows,
                    pooling=pooling,
                    tuning=settings.tuning,
                    seed=seed,
                )
                for seed in settings.seeds
            ]
    runs = [run for members in wanted.values() for run in members]
    found = iter(_accuracies(runs, settings.workers, context))
    return {key: [next(found) for _ in members] for key, members in wanted.items()}


def _accuracies(runs: Sequence[Finetuning], workers: int, context: Context) -> list[float]:
    if workers == 0:
        return [accuracy(run) for run in runs]
    results = []
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for run, value in zip(runs, pool.map(accuracy, runs), strict=True):
            results.append(value)
            context.log(f"{run.run.name}: accuracy {value:.4f} ({len(results)} of {len(runs)} runs)")
    return results


def _metrics(
    settings: Settings, corpus: Corpus, models: Mapping[str, RunConfig], scores: Mapping[tuple[str, str], list[float]]
) -> dict[str, Any]:
    """Figures by name, over seeds where they have them; the causal model counts with its better pooling."""
    metrics: dict[str, Any] = {"unigram_loss": unigram_loss(corpus.train, corpus.heldout, corpus.vocab_size)}
    for (task, reading), values in scores.items():
        metrics[f"{task}_{reading}"] = values
    for task in dict.fromkeys(task for task, _ in scores):
        own = {reading: scores[task, reading] for reading in READINGS}
        causal = max((own["clm_mean"], own["clm_last"]), key=fmean)
        metrics[f"{task}_gain"] = _differences(own["mlm"], causal)
        metrics[f"{task}_pretraining_gain"] = _differences(own["mlm"], own["scratch"])
        metrics[f"{task}_spread"] = spread(*own.values())
    for name, config in models.items():
        lines = read_metrics(Path(config.out) / "metrics.jsonl")
        steps = [line for line in lines if "loss" in line]
        shape = _shape(settings, causal=name == "clm").encoder_config(corpus.vocab_size)
        metrics |= {
            f"{name}_parameters": parameter_count(shape),
            f"{name}_tokens": steps[-1]["tokens"],
            f"{name}_predictions": sum(line["masked"] for line in steps),
            f"{name}_flops": math.fsum(line["flops"] for line in steps),
            f"{name}_heldout_loss": [line["heldout_loss"] for line in lines if "heldout_loss" in line][-1],
        }
    return metrics


def _differences(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(above, below, strict=True)]


def _table(settings: Settings, scores: Mapping[tuple[str, str], list[float]]) -> str:
    """Accuracy of every reading in percent: the mean over seeds and its extremes."""
    tasks = list(dict.fromkeys(task for task, _ in scores))
    rows = [["pretraining and pooling", *(task.upper() for task in tasks)], ["---"] * (1 + len(tasks))]
    for reading, label in LABELS.items():
        values = [[100 * value for value in scores[task, reading]] for task in tasks]
        rows.append([label, *(f"{fmean(v):.1f} ({min(v):.1f} to {max(v):.1f})" for v in values)])
    lines = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return f"{lines}\nAccuracy in %, mean of {len(settings.seeds)} seeds of fine-tuning (lowest to highest).\n"
