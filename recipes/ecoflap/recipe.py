"""ECoFLaP: Wanda with a share for each matrix from forward passes, against the same share for all."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from recipes.claims import Tier
from recipes.compressed import Start, begin, drawn, packed_rows, points
from recipes.runner import Context
from terrazzo.compression import (
    TaskGradients,
    collect,
    examples_of,
    first_order,
    matrices,
    prune_layerwise,
    single_matrices,
    sparsities,
    zeroth_order,
)
from terrazzo.compression.masks import sparsity
from terrazzo.compression.statistics import Wanted
from terrazzo.objectives import SupervisedConfig
from terrazzo.packed import Packed
from terrazzo.tasks.batches import collate
from terrazzo.tasks.labelled import LabelledRows
from terrazzo.tasks.model import LoadedTask, load_task_model


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One tier.

    Args:
        calibration: training rows that each seed draws, for Wanda; scored: those of them that ratios are made of, in
            batches of `batch` with noise of their own.
        proof: rows that judge.
    """

    tasks: tuple[str, ...] = ("sst2", "clinc150")
    calibration: int = 512
    scored: int = 128
    batch: int = 8
    proof: int | None = None
    targets: tuple[float, ...] = (0.5, 0.6)
    seeds: int = 3


SETTINGS = {
    "smoke": Settings(calibration=16, scored=8, seeds=1),
    "small": Settings(proof=1_000),
}


def run(tier: Tier, context: Context) -> dict[int, dict[str, float]]:
    """Points that ratios gain over even shares, by seed of noise and calibration rows; the mean of the tasks."""
    settings = SETTINGS[tier]
    context.record("config", settings)
    per_task: dict[str, dict[int, dict[str, float]]] = {}
    for name in settings.tasks:
        start = begin(tier, name, context, settings.proof)
        dense = load_task_model(start.dense(0))
        whole = points(dense.model, dense, start.rows.proof)
        per_task[name] = {}
        for seed in range(settings.seeds):
            per_task[name][seed] = {"dense": whole, **_arms(settings, start, dense, seed, context)}
            context.log(f"{name}, seed {seed}: {per_task[name][seed]}")
    return {
        seed: _metrics(settings, {name: by_seed[seed] for name, by_seed in per_task.items()})
        for seed in range(settings.seeds)
    }


def _metrics(settings: Settings, found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    own = {f"{arm}_{name}": value for name, arms in found.items() for arm, value in arms.items()}
    for target in settings.targets:
        share = f"{100 * target:.0f}"
        gains = {name: arms[f"zeroth_{share}"] - arms[f"even_{share}"] for name, arms in found.items()}
        own |= {f"gain_{share}_{name}": gain for name, gain in gains.items()}
        own[f"gain_{share}"] = fmean(gains.values())
    last = f"{100 * settings.targets[-1]:.0f}"
    own["against_first_order"] = fmean(arms[f"zeroth_{last}"] - arms[f"first_{last}"] for arms in found.values())
    own["budget_error"] = max(arms["budget_error"] for arms in found.values())
    return own


def _arms(settings: Settings, start: Start, dense: LoadedTask, seed: int, context: Context) -> dict[str, float]:
    """Points at every target with even shares and with ratios from forward passes; at the last also from gradients."""
    rows = drawn(start.rows.train, settings.calibration, seed)
    wanted = Wanted(grams=frozenset(matrices(dense.model.encoder)))
    moments = collect(dense.model.encoder, packed_rows(dense, rows), wanted).grams
    grams = {name: own.gram_FF for name, own in moments.items()}
    scores = _scores(
        settings, dense, LabelledRows.encode(dense.model.task, rows[: settings.scored], dense.tokenizer, 512), seed
    )
    context.record(f"scores_{start.name}_{seed}", scores)
    views, found, errors = single_matrices(dense.model.encoder), dict[str, float](), []
    for target in settings.targets:
        shares = {"even": dict.fromkeys(views, target)}
        shares |= {arm: sparsities(own, views, target) for arm, own in scores.items()}
        if target != settings.targets[-1]:
            del shares["first"]
        for arm, share in shares.items():
            model = copy.deepcopy(dense.model)
            pruned = prune_layerwise(model.encoder, grams, share, "wanda")
            errors.append(abs(sparsity(pruned.keep) - target))
            found[f"{arm}_{100 * target:.0f}"] = points(model, dense, start.rows.proof)
    return {**found, "budget_error": max(errors)}


def _scores(settings: Settings, dense: LoadedTask, rows: LabelledRows, seed: int) -> dict[str, dict[str, float]]:
    """How much the loss depends on each matrix: estimated by forward passes, and by exact gradients."""
    model, options = dense.model.eval(), SupervisedConfig()

    def loss(batch: Packed) -> float:
        whole = model.task_loss(batch, options)
        return float(whole.sum / whole.weight)

    views, documents = single_matrices(model.encoder), rows.flat
    starts = range(0, len(documents), settings.batch)
    batches = [collate(documents[first : first + settings.batch]) for first in starts]
    zeroth = zeroth_order(loss, views, batches, seed=seed)
    return {"zeroth": zeroth, "first": first_order(TaskGradients(model, examples_of(rows)), views)}
