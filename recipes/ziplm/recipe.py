"""ZipLM at once: heads and units cut to one shape by ZipLM and by magnitude, a searched plan, recovery by a teacher."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch

from recipes.claims import Tier
from recipes.compressed import TINY, Start, around, begin, drawn, folder_points, packed_rows, points, trained, workload
from recipes.runner import Context
from terrazzo.compression import (
    Database,
    DistillConfig,
    DistillWorkload,
    SearchOptions,
    collect,
    level_errors,
    output_projections,
    search_plan,
    stitch,
)
from terrazzo.compression.sites import Site, sites
from terrazzo.compression.structured import magnitude, without_update
from terrazzo.compression.ziplm import database, default_levels
from terrazzo.nn import Encoder, EncoderConfig
from terrazzo.objectives import SupervisedConfig
from terrazzo.packed import Packed
from terrazzo.tasks import TaskModel
from terrazzo.tasks.model import LoadedTask, load_task_model


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One tier.

    Args:
        tasks: by name, each with the training rows that are calibrated on.
        heads, units: what every layer keeps.
        proof: rows that judge, of each task.
        searched: task whose plan is searched, for so many of the `seeds`; by the loss on `search_rows`.
        recovered: task whose cut model of seed 0 is trained on with a teacher, on `recovery_rows`, as `recovery` says.
        lengths: of the documents whose time is taken.
    """

    tasks: Mapping[str, int]
    heads: int
    units: int
    proof: int | None = None
    seeds: int = 5
    searched: str = "sst2"
    searches: int = 3
    search_rows: int = 256
    search: Mapping[str, int] = field(default_factory=dict)
    recovered: str = "sst2"
    recovery_rows: int | None = None
    recovery: Mapping[str, Any] = field(default_factory=dict)
    distill: DistillConfig = DistillConfig(labels=0.0, outputs=0.5, hidden=0.5)
    lengths: tuple[int, ...] = (16, 24, 32, 48, 64, 64, 96, 128)


SETTINGS = {
    "smoke": Settings(
        tasks={"mrpc": 16, "sst2": 16},
        heads=1,
        units=24,
        seeds=1,
        searches=1,
        search_rows=8,
        search={"starts": 2, "failures": 2, "evaluations": 5},
        recovery={**TINY, "epochs": 2.0},
        lengths=(8, 16),
    ),
    "small": Settings(
        tasks={"mrpc": 256, "sst2": 1024},
        heads=5,
        units=672,
        proof=1_000,
        searches=2,
        search={"starts": 30, "failures": 20, "evaluations": 80},
        recovery_rows=10_000,
        recovery={"lr": (2e-4,), "epochs": 1.0},
    ),
}


def run(tier: Tier, context: Context) -> dict[int, dict[str, float]]:
    """Points by seed: ZipLM over magnitude at one shape, over its own structures without update, searched, recovered.

    Raises:
        KeyError: the tier is not one of this recipe's.
    """
    settings = SETTINGS[tier]
    context.record("config", settings)
    found: dict[str, dict[int, dict[str, float]]] = {}
    metrics: dict[int, dict[str, float]] = {seed: {} for seed in range(settings.seeds)}
    for name, rows in settings.tasks.items():
        begun = begin(tier, name, context, settings.proof)
        dense = load_task_model(begun.dense(0))
        whole = points(dense.model, dense, begun.rows.proof)
        found[name] = {}
        for seed in metrics:
            arms = _arms(settings, begun, dense, seed, rows, context)
            found[name][seed] = {"dense": whole, **arms}
            context.log(f"{name}, seed {seed}: {found[name][seed]}")
    context.record("points", found)
    for seed, own in metrics.items():
        own.update(_metrics({name: by_seed[seed] for name, by_seed in found.items()}))
    begun = begin(tier, settings.recovered, context, settings.proof)
    metrics[0].update(_recovered(settings, begun, found[begun.name][0]["dense"], context))
    return metrics


def _metrics(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Means over tasks, and each task's own."""
    own = {f"{arm}_{name}": value for name, arms in found.items() for arm, value in arms.items()}
    gains = {name: arms["ziplm"] - arms["magnitude"] for name, arms in found.items()}
    own |= {f"gain_{name}": gain for name, gain in gains.items()}
    own["gain"] = fmean(gains.values())
    own["update_gain"] = fmean(arms["ziplm"] - arms["without_update"] for arms in found.values())
    own["speedup"] = min(arms["speedup"] for arms in found.values())
    searched = [arms["searched"] - arms["ziplm"] for arms in found.values() if "searched" in arms]
    return own | ({"search_gain": fmean(searched)} if searched else {})


def _arms(
    settings: Settings, begun: Start, dense: LoadedTask, seed: int, rows: int, context: Context
) -> dict[str, float]:
    """What every way to cut scores on the proof rows, calibrated on rows that `seed` draws."""
    encoder, calibration = dense.model.encoder, drawn(begun.rows.train, rows, seed)
    grams = collect(encoder, packed_rows(dense, calibration), output_projections(encoder.config)).grams
    plan = even_plan(encoder.config, settings)
    searched = begun.name == settings.searched and seed < settings.searches
    even = {name: (size,) for name, size in plan.items()}
    ladders = default_levels(encoder.config) if searched else dict.fromkeys(plan, ())
    made = database(encoder, grams, {name: (*ladders[name], *even[name]) for name in plan})
    databases = {"ziplm": made, "magnitude": magnitude(encoder, grams, even)}
    databases["without_update"] = without_update(encoder, grams, made)
    found = {}
    for arm, levels_of in databases.items():
        found[arm] = points(_cut(dense.model, levels_of, plan), dense, begun.rows.proof)
    found["speedup"] = speedup(encoder, stitch(encoder, made, plan), settings.lengths)
    if searched:
        loss_rows = drawn(begun.rows.dev, settings.search_rows, seed)
        best = _searched(settings, dense, made, plan, list(packed_rows(dense, loss_rows)), seed)
        context.record(f"searched_plan_{seed}", best)
        found["searched"] = points(_cut(dense.model, made, best), dense, begun.rows.proof)
    return found


def even_plan(config: EncoderConfig, settings: Settings) -> dict[str, int]:
    """The same heads and units in every layer."""
    return {site.name: settings.heads if site.kind == "heads" else settings.units for site in sites(config)}


def _cut(dense: TaskModel, levels: Database, plan: Mapping[str, int]) -> TaskModel:
    return around(stitch(dense.encoder, levels, plan), dense)


def _searched(
    settings: Settings,
    dense: LoadedTask,
    made: Database,
    plan: Mapping[str, int],
    batches: list[Packed],
    seed: int,
) -> dict[str, int]:
    """The plan that the search finds where a site costs what it has of weights; the even plan's cost is the budget."""
    errors = level_errors(made)
    each = {name: _weights(Site.parse(name), dense.model.config) for name in plan}
    prices = {name: [float(size * each[name]) for size, _ in some] for name, some in errors.items()}
    budget = float(sum(size * each[name] for name, size in plan.items()))

    def loss(sizes: Mapping[str, int]) -> float:
        model = _cut(dense.model, made, sizes)
        with torch.inference_mode():
            parts = [model.task_loss(batch, SupervisedConfig()) for batch in batches]
        return float(sum(part.sum for part in parts)) / sum(int(part.weight) for part in parts)

    found = search_plan(errors, prices, budget, loss, seed=seed, options=SearchOptions(**settings.search))
    return dict(found.sizes)


def _weights(site: Site, config: EncoderConfig) -> int:
    """Weights of one head or unit, each of which is multiplied once a token."""
    if site.kind == "heads":
        return 4 * config.width * config.head_width
    return (3 if config.gated else 2) * config.width


def speedup(encoder: Encoder, small: Encoder, lengths: tuple[int, ...], rounds: int = 7) -> float:
    """Least CPU time of the whole encoder on one batch over that of the small one, taken in turns."""
    torch.manual_seed(0)
    vocabulary = encoder.config.vocab_size
    batch = Packed.from_sequences([torch.randint(0, vocabulary, (length,)).numpy() for length in lengths])
    spent: dict[str, list[float]] = {"whole": [], "small": []}
    modes = {"whole": encoder.eval(), "small": small.eval()}
    with torch.inference_mode():
        for _ in range(rounds + 1):
            for name, model in modes.items():
                before = time.process_time()
                model(batch)
                spent[name].append(time.process_time() - before)
    return min(spent["whole"][1:]) / min(spent["small"][1:])


def _recovered(settings: Settings, begun: Start, whole: float, context: Context) -> dict[str, float]:
    """Points below dense of the cut model of seed 0 after it has followed the dense one."""
    dense = load_task_model(begun.dense(0))
    encoder, rows = dense.model.encoder, drawn(begun.rows.train, settings.tasks[begun.name], 0)
    grams = collect(encoder, packed_rows(dense, rows), output_projections(encoder.config)).grams
    plan = even_plan(encoder.config, settings)
    made = database(encoder, grams, {name: [size] for name, size in plan.items()})
    out = context.work / f"ziplm-recovered-{begun.name}"
    options = begun.options(out, **settings.recovery)
    student = _cut(dense.model, made, plan)
    rows = drawn(begun.rows.train, settings.recovery_rows)
    inner = workload(dense, rows, begun.rows.dev, student, options.batch_size)
    work = DistillWorkload(inner=inner, teacher=dense.model, options=settings.distill)
    folder = trained(options, work, len(rows), context.log)
    score = folder_points(folder, begun.rows.proof)
    return {"recovered": score, "recovered_drop": whole - score}
