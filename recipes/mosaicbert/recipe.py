"""MosaicBERT against BERT and against itself with an ingredient taken out, at equal training time."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from recipes.claims import Tier
from recipes.mosaicbert.arms import ABLATIONS, ARMS, BERT, MOSAICBERT, Shape
from recipes.mosaicbert.downstream import SMOKE, Downstream, run_downstream, toy_suite
from recipes.mosaicbert.picture import draw
from recipes.mosaicbert.training import (
    Recipe,
    Spec,
    median_ratio,
    probe,
    seconds_to_reach,
    train_arm,
)
from recipes.runner import Context
from recipes.wikipedia import corpus_of
from terrazzo.config import config, read_file, to_dict
from terrazzo.data import Corpus, prepare
from terrazzo.errors import RunError
from terrazzo.provenance import write_json_atomic
from terrazzo.train import default_hooks, resolve, train
from terrazzo.train.metrics import read_metrics

#: arms that compute the same loss from the same weights, only more slowly
SAME_FUNCTION = ("mosaicbert", "unpadding", "masked_head")
RESULTS = Path(__file__).with_name("results")


@config
class Settings:
    """A tier.

    Args:
        seconds: training time of each arm on one core; evaluation is not counted.
        seeds: of MosaicBERT and BERT; the ablations run with the first.
        rounds: steps of each arm that its speed is measured with.
        processes: arms that train at a time, one thread each; 0 trains them in this process.
        megabytes: of Wikipedia text.
    """

    recipe: Recipe
    seconds: float
    seeds: tuple[int, ...]
    rounds: int
    processes: int
    megabytes: float = 12.0
    vocab_size: int = 2048


TIERS = {
    "smoke": Settings(
        recipe=Recipe(
            shape=Shape(width=32, depth=2, num_heads=2, mlp_width=48, max_len=32),
            batch_tokens=512,
            evaluations=4,
            eval_tokens=512,
        ),
        seconds=0.25,
        seeds=(0,),
        rounds=2,
        processes=0,
    ),
    "small": Settings(recipe=Recipe(), seconds=70.0, seeds=(0, 1), rounds=25, processes=2),
}


def run(tier: Tier, context: Context) -> dict[int, dict[str, float]]:
    """Metrics per seed; those of the ablations come with the first seed."""
    if tier == "paper":
        return run_paper(context)
    if tier == "downstream":
        return _downstream(context)
    settings = TIERS[tier]
    corpus = corpus_of(tier, context, settings.megabytes, settings.vocab_size)
    context.record("config", {**to_dict(settings), "arms": [to_dict(arm) for arm in ARMS.values()]})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    steps = probe(list(ARMS), corpus, settings.recipe, settings.rounds)
    torch.set_num_threads(threads)
    medians = {arm: statistics.median(seconds) for arm, seconds in steps.items()}
    context.log("CPU seconds a step: " + ", ".join(f"{arm} {value:.4f}" for arm, value in medians.items()))
    runs = _train_all(_specs(settings, corpus, medians), settings.processes, context)
    context.record("step_seconds", steps)
    context.record("runs", runs)
    context.record("text", _text_figures(corpus, settings))
    draw(runs, RESULTS if tier == "small" else context.work, _caption(settings, runs))
    found = {seed: _metrics(settings, runs, steps, seed) for seed in settings.seeds}
    if tier == "smoke":
        toy = dataclasses.replace(SMOKE, suite=str(toy_suite(context.work / "toy")))
        tuned = run_downstream(toy, corpus, context.work / "toy", context)
        found = {seed: {**metrics, **tuned[seed]} for seed, metrics in found.items()}
    return found


def _downstream(context: Context) -> dict[int, dict[str, float]]:
    """Quality along pretraining, with the picture beside the results."""
    settings = Downstream()
    context.record("config", settings)
    glue = context.data("glue", "GLUE from https://gluebenchmark.com/tasks")
    corpus = corpus_of("downstream", context, settings.megabytes, settings.vocab_size)
    found = run_downstream(settings, corpus, glue.parent, context)
    for suffix in ("png", "svg"):
        shutil.copyfile(context.work / "downstream" / f"downstream.{suffix}", RESULTS / f"downstream.{suffix}")
    return found


def _specs(settings: Settings, corpus: Corpus, step_seconds: dict[str, float]) -> list[Spec]:
    """All runs, the main arms of the first seed first, each with as many steps as fit the time."""
    pairs = [(arm.name, seed) for seed in settings.seeds for arm in (MOSAICBERT, BERT)]
    pairs[2:2] = [(arm.name, settings.seeds[0]) for arm in ABLATIONS]
    return [
        Spec(
            arm=arm,
            data=str(corpus.path),
            steps=max(settings.recipe.evaluations, round(settings.seconds / step_seconds[arm])),
            recipe=settings.recipe,
            seed=seed,
            step_seconds=step_seconds[arm],
        )
        for arm, seed in pairs
    ]


def _train_all(specs: Sequence[Spec], processes: int, context: Context) -> list[dict[str, Any]]:
    """Results of the runs that ended well; one that failed is reported and left out."""
    if not processes:
        return [train_arm(spec) for spec in specs]
    with ThreadPoolExecutor(processes) as pool:
        results = list(pool.map(lambda spec: _train_apart(spec, context), specs))
    done = [result for result in results if result is not None]
    if not done:
        raise RunError(f"every arm failed; the reason is in {context.work}/*.log")
    return done


def _train_apart(spec: Spec, context: Context) -> dict[str, Any] | None:
    """Train one arm in a process of its own with one thread; None if it fails."""
    files = {kind: context.work / f"{spec.name}.{kind}" for kind in ("spec.json", "result.json", "log")}
    files["result.json"].unlink(missing_ok=True)
    write_json_atomic(files["spec.json"], to_dict(spec))
    context.log(f"{spec.name}: {spec.steps} steps")
    command = [sys.executable, "-m", "recipes.mosaicbert.training", str(files["spec.json"])]
    command.append(str(files["result.json"]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with open(files["log"], "w", encoding="utf-8") as log:
        status = subprocess.run(
            command, cwd=Path(__file__).parents[2], env=environment, stdout=log, stderr=subprocess.STDOUT
        ).returncode
    if status or not files["result.json"].exists():
        context.log(f"{spec.name}: failed with status {status}, see {files['log']}")
        return None
    result: dict[str, Any] = json.loads(files["result.json"].read_text(encoding="utf-8"))
    context.log(f"{spec.name}: held-out loss {result['curve'][-1]['heldout_loss']:.4f}, {result['cpu_seconds']} CPU s")
    return result


def _metrics(
    settings: Settings, runs: Sequence[dict[str, Any]], steps: dict[str, list[float]], seed: int
) -> dict[str, float]:
    curves = {run["arm"]: run["curve"] for run in runs if run["seed"] == seed}
    final = {arm: curve[-1]["heldout_loss"] for arm, curve in curves.items()}
    metrics = {f"{arm}_loss": loss for arm, loss in final.items()}
    if "mosaicbert" not in curves:
        return metrics
    if "bert" in curves:
        reached = seconds_to_reach(curves["mosaicbert"], final["bert"])
        metrics["loss_below_bert"] = final["bert"] - final["mosaicbert"]
        metrics["seconds_to_bert_loss"] = reached
        metrics["speed_to_bert_loss"] = curves["bert"][-1]["seconds"] / reached
        metrics["tokens_times_bert"] = curves["mosaicbert"][-1]["tokens"] / curves["bert"][-1]["tokens"]
    if seed == settings.seeds[0]:
        metrics["step_speed_times_bert"] = median_ratio(steps["bert"], steps["mosaicbert"])
        for arm in (ablation.name for ablation in ABLATIONS):
            metrics[f"{arm}_step_speedup"] = median_ratio(steps[arm], steps["mosaicbert"])
            if arm in final:
                metrics[f"{arm}_loss_gain"] = final[arm] - final["mosaicbert"]
        untrained = [curves[arm][0]["heldout_loss"] for arm in SAME_FUNCTION if arm in curves]
        metrics["same_function_difference"] = max(untrained) - min(untrained)
    return metrics


def _text_figures(corpus: Corpus, settings: Settings) -> dict[str, float]:
    """How much there is to save by unpadding."""
    max_len = settings.recipe.shape.max_len
    body = max_len - 2
    lengths = corpus.train.lengths
    pieces = int((-(-lengths // body)).sum())
    tokens = int(lengths.sum()) + 2 * pieces
    return {"train_tokens": tokens, "pieces": pieces, "valid_share": tokens / (pieces * max_len)}


def _caption(settings: Settings, runs: Sequence[dict[str, Any]]) -> str:
    shape, parameters = settings.recipe.shape, sorted({run["parameters"] for run in runs})
    return (
        f"{shape.depth} layers x {shape.width}, {parameters[0] / 1e6:.2f} to {parameters[-1] / 1e6:.2f} M parameters, "
        f"Wikipedia paragraphs of at most {shape.max_len} tokens, {settings.seconds:g} s of one core an arm, "
        "fixed 15 % masks"
    )


def run_paper(context: Context) -> dict[int, dict[str, float]]:
    """Pretrain MosaicBERT-Base by the paper's settings (base.toml) with the one training loop."""
    folder = context.data("c4", "C4 en from https://huggingface.co/datasets/allenai/c4 as .json.gz or .jsonl files")
    corpus = prepare([folder], context.work / "data", vocab_size=30_528)
    values = {
        **read_file(Path(__file__).with_name("base.toml")),
        "data": str(corpus.path),
        "out": str(context.work / "run"),
    }
    settings = resolve(values, (), "base.toml")
    context.record("config", settings)
    metrics = context.work / "run" / "metrics.jsonl"
    begun = (context.work / "run" / "run.json").is_file()
    if train(settings, resume=begun, hooks=default_hooks(settings)) is None:
        raise RunError("interrupted; the same command goes on")
    last = [line for line in read_metrics(metrics) if "heldout_loss" in line][-1]
    return {settings.seed: {"heldout_loss": last["heldout_loss"], "hours": last["seconds"] / 3600}}
