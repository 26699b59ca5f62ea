"""The paper's own picture: MosaicBERT and BERT fine-tuned along pretraining, quality against equal time."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import field
from pathlib import Path
from typing import Any

import torch

from recipes.mosaicbert.arms import ARMS, Shape
from recipes.mosaicbert.pretraining import pretrain
from recipes.mosaicbert.training import Recipe, Spec, probe
from recipes.runner import Context
from terrazzo.config import config, to_dict
from terrazzo.data import Corpus
from terrazzo.errors import RunError
from terrazzo.provenance import write_json_atomic
from terrazzo.tasks.pareto import Curve, ParetoResult, Point, draw, run_pareto, try_run
from terrazzo.testing import tiny_texts

PAIR = ("mosaicbert", "bert")


@config
class Downstream:
    """What is pretrained and what is tried on it.

    Args:
        seconds: training time of each arm on one core.
        seeds: of pretraining; tuning_seeds: of fine-tuning.
        rounds: steps of each arm that its speed is measured with.
        processes: runs at a time, one thread each; 0 runs all in this process.
        suite: a suite by name, or a manifest.
        lr: of fine-tuning; procedure: other fields of it that differ from the suite's quick profile.
    """

    recipe: Recipe = Recipe(batch_tokens=1024)
    seconds: float = 480.0
    seeds: tuple[int, ...] = (0,)
    rounds: int = 25
    processes: int = 2
    megabytes: float = 40.0
    vocab_size: int = 4096
    suite: str = "glue"
    tasks: tuple[str, ...] = ("sst2", "mrpc", "cola", "rte", "stsb")
    tuning_seeds: tuple[int, ...] = (0, 1, 2)
    lr: float = 5e-4
    procedure: dict[str, Any] = field(
        default_factory=lambda: {
            "train_rows": 800,
            "stsb.train_rows": 600,
            "mrpc.train_rows": 400,
            "rte.train_rows": 300,
            "eval_rows": 800,
            "epochs": 3.0,
            "max_len": 96,
        }
    )


SMOKE = Downstream(
    recipe=Recipe(
        shape=Shape(width=32, depth=2, num_heads=2, mlp_width=48, max_len=32), batch_tokens=512, eval_tokens=512
    ),
    seconds=0.1,
    rounds=2,
    processes=0,
    tasks=("parity",),
    tuning_seeds=(0,),
    procedure={"epochs": 1.0},
)


def run_downstream(settings: Downstream, corpus: Corpus, data_root: Path, context: Context) -> dict[int, Any]:
    """Pretrain, try the suite at every checkpoint, draw; returns metrics per pretraining seed.

    What an earlier call left in the work folder is not run again.
    """
    step_seconds = _step_seconds(settings, corpus, context)
    specs = [
        Spec(
            arm=arm,
            data=str(corpus.path),
            steps=max(8, round(settings.seconds / step_seconds[arm])),
            recipe=settings.recipe,
            seed=seed,
            step_seconds=step_seconds[arm],
        )
        for seed in settings.seeds
        for arm in PAIR
    ]
    runs = _pretrained(specs, settings.processes, context)
    options: dict[str, Any] = {
        "tasks": settings.tasks,
        "seeds": settings.tuning_seeds,
        "learning_rates": (settings.lr,),
        "overrides": settings.procedure,
        "threads": 1,
    }
    out = context.work / "downstream"
    if settings.processes:
        _tried(settings, runs, data_root, out, options)
    result = run_pareto(settings.suite, runs, data_root, out, progress=context.log, **options)
    context.record("pareto", result.to_dict())
    picture(result, settings, out)
    curves = {curve.name: curve for curve in result.curves}
    return {seed: metrics(*(curves[f"{arm}-{seed}"] for arm in PAIR)) for seed in settings.seeds}


def _step_seconds(settings: Downstream, corpus: Corpus, context: Context) -> dict[str, float]:
    """Median CPU seconds of a step of each arm, measured once for a work folder."""
    file = context.work / "step_seconds.json"
    if not file.is_file():
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        write_json_atomic(file, probe(PAIR, corpus, settings.recipe, settings.rounds))
        torch.set_num_threads(threads)
    measured: Mapping[str, list[float]] = json.loads(file.read_text(encoding="utf-8"))
    context.record("downstream_step_seconds", measured)
    return {arm: statistics.median(seconds) for arm, seconds in measured.items()}


def _pretrained(specs: Sequence[Spec], processes: int, context: Context) -> list[Path]:
    """The run folders of the specs, `processes` trained at a time."""
    runs = [context.work / "runs" / spec.name for spec in specs]
    if not processes:
        return [pretrain(spec, run) for spec, run in zip(specs, runs, strict=True)]
    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(_pretrain_apart, specs, runs))
    return runs


def _pretrain_apart(spec: Spec, run: Path) -> None:
    """Train one arm in a process of its own with one thread."""
    source = run.with_name(f"{run.name}.spec.json")
    write_json_atomic(source, to_dict(spec))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "recipes.mosaicbert.pretraining", str(source), str(run)]
    with open(run.with_name(f"{run.name}.log"), "w", encoding="utf-8") as log:
        status = subprocess.run(
            command, cwd=Path(__file__).parents[2], env=environment, stdout=log, stderr=subprocess.STDOUT
        ).returncode
    if status:
        raise RunError(f"{run.name}: failed with status {status}, the reason is in {log.name}")


def _tried(settings: Downstream, runs: Sequence[Path], data_root: Path, out: Path, options: Mapping[str, Any]) -> None:
    """Fine-tune along several runs at a time; the outcomes wait in `out`."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(settings.processes, mp_context=context) as pool:
        for future in [pool.submit(try_run, settings.suite, run, data_root, out, **options) for run in runs]:
            future.result()


def metrics(ours: Curve, bert: Curve) -> dict[str, float]:
    """What the claims ask of a pair of curves whose points lie at equal times; quality in points of a hundred."""
    last, theirs = ours.points[-1], bert.points[-1]
    pairs = list(zip(ours.points, bert.points, strict=True))
    rise = theirs.quality - bert.points[0].quality
    # where BERT's own curve does not rise beyond its seeds' spread, there is no quality that took it all of its time
    speed = theirs.seconds / seconds_at(ours.points, theirs.quality) if rise > theirs.spread else float("nan")
    return {
        "downstream_quality": 100 * last.quality,
        "downstream_bert_quality": 100 * theirs.quality,
        "downstream_gain": 100 * (last.quality - theirs.quality),
        "downstream_spread": 100 * (last.spread**2 + theirs.spread**2) ** 0.5,
        "downstream_bert_rise": 100 * rise,
        "downstream_speed": speed,
        "downstream_ahead": sum(a.quality > b.quality for a, b in pairs) / len(pairs),
    }


def seconds_at(points: Sequence[Point], quality: float) -> float:
    """When a curve first comes to `quality`, linear between its points; infinite if it never does.

    A curve that begins above it counts with its first point, so a speed from it is a lower bound.
    """
    before: Point | None = None
    for point in points:
        if point.quality >= quality:
            if before is None:
                return point.seconds
            share = (quality - before.quality) / (point.quality - before.quality)
            return before.seconds + share * (point.seconds - before.seconds)
        before = point
    return float("inf")


def mean_curve(name: str, curves: Sequence[Curve]) -> Curve:
    """One curve from runs that differ in their pretraining seed alone, whose spread it then shows."""
    points = []
    for same in zip(*(curve.points for curve in curves), strict=True):
        qualities = [point.quality for point in same]
        spread = statistics.stdev(qualities) if len(qualities) > 1 else same[0].spread
        points.append(dataclasses.replace(same[0], quality=statistics.fmean(qualities), spread=spread))
    return Curve(name=name, points=tuple(points))


def picture(result: ParetoResult, settings: Downstream, folder: Path) -> None:
    """downstream.png and .svg: a curve for each arm, the mean of its pretraining seeds."""
    by_arm = {arm: [curve for curve in result.curves if curve.name.rsplit("-", 1)[0] == arm] for arm in PAIR}
    merged = tuple(mean_curve(ARMS[arm].label, curves) for arm, curves in by_arm.items())
    shape = settings.recipe.shape
    rows = settings.procedure.get("train_rows", "all")
    bars = "pretraining" if len(settings.seeds) > 1 else "fine-tuning"
    caption = (
        f"{shape.depth} layers x {shape.width}, vocabulary {settings.vocab_size:,}, {settings.seconds:g} s of one core "
        f"of Wikipedia paragraphs; tried on {', '.join(result.tasks)} with at most {rows} training rows, "
        f"{len(settings.tuning_seeds)} fine-tuning seeds; bars: standard deviation over {bars} seeds"
    )
    draw(dataclasses.replace(result, curves=merged), folder, "downstream", caption)


def toy_suite(folder: Path) -> Path:
    """The manifest of a suite of one task that needs no download, with its data, in `folder`."""
    texts = tiny_texts(60)
    lines = [f"{text}\t{int('the' in text.split()[0])}" for text in texts]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "toy.tsv").write_text("\n".join(["text\tlabel", *lines]) + "\n", encoding="utf-8")
    manifest = folder / "toy.toml"
    manifest.write_text(_TOY, encoding="utf-8")
    return manifest


_TOY = """
name = "toy"
title = "Toy"
procedure = "one task made up"

[[tasks]]
name = "parity"
title = "First word"
kind = "label"
download = "made by the recipe"
train = ["toy.tsv"]
evaluate = { same = "toy.tsv" }
metrics = ["accuracy"]
"""
