"""DARE on fine-tuned encoders: changes dropped and rescaled, files of what is left, and three tasks merged into one."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor

from recipes.claims import Tier
from recipes.compressed import Start, begin, drawn, folder_points, points
from recipes.runner import Context
from terrazzo.compression.delta_files import load_delta, save_delta
from terrazzo.compression.deltas import Base, Delta, add, changes_of, drop_all, head_of, task_model
from terrazzo.compression.merge import Method, combine, merge, sizes
from terrazzo.compression.regmean import Inputs, inputs_of, regmean
from terrazzo.compression.subject import batches as packed_batches
from terrazzo.tasks.labelled import LabelledRows
from terrazzo.tasks.model import LoadedTask, load_task_model


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One tier.

    Args:
        proof: rows of each task that judge; chosen_by: rows of dev that choose how to merge.
        p: share that is dropped; more: another, tried with seed 0 alone.
        largest: shares that are dropped where the largest entries stay, which draws nothing.
        weights, dropped: the grid of sums: factors of each task's changes.
        ties: the scales at which TIES is tried, with equal weights and this `density`.
        solved: how much each task counts in RegMean, whose inputs are of so many rows (`texts`) of each training set.
        merges: draws of the chosen merging that are judged.
    """

    tasks: tuple[str, ...] = ("mrpc", "stsb", "clinc150")
    proof: int | None = None
    chosen_by: int = 250
    p: float = 0.9
    more: float = 0.99
    largest: tuple[float, ...] = (0.9, 0.98, 0.99)
    seeds: int = 5
    weights: Mapping[str, tuple[float, ...]] = field(
        default_factory=lambda: {"mrpc": (0.4, 0.6), "stsb": (1.0, 1.2), "clinc150": (0.3, 0.4, 0.5)}
    )
    dropped: tuple[float, ...] = (0.0, 0.5)
    ties: tuple[float, ...] = (0.5, 1.0)
    density: float = 0.2
    solved: tuple[tuple[float, ...], ...] = ((1.0, 2.0, 1.0), (1.0, 2.5, 1.0), (1.0, 3.0, 1.0), (1.5, 3.0, 1.0))
    texts: int = 400
    merges: int = 3


SETTINGS = {
    "smoke": Settings(
        seeds=1, weights={"mrpc": (1.0,), "stsb": (1.0,), "clinc150": (0.3, 0.5)}, ties=(), merges=1, texts=16
    ),
    "small": Settings(proof=1200),
}


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """A fine-tuning: its folder, its model, what it changed of the base, and its score."""

    start: Start
    folder: Path
    loaded: LoadedTask
    score: float


@dataclass(frozen=True, kw_only=True)
class Merging:
    """How changes are dropped and joined."""

    p: float
    method: Method
    scale: float = 1.0
    density: float = 1.0
    weights: Mapping[str, float] = field(default_factory=dict)


def run(tier: Tier, context: Context) -> dict[int, dict[str, float]]:
    """Points that dropping loses by seed of the draw, bytes of files, what the chosen merging loses on every task."""
    settings = SETTINGS[tier]
    context.record("config", settings)
    tuned = {}
    for name in settings.tasks:
        start = begin(tier, name, context, settings.proof)
        folder = start.dense(0)
        tuned[name] = Tuned(
            start=start,
            folder=folder,
            loaded=load_task_model(folder),
            score=folder_points(folder, start.rows.proof),
        )
    base = Base.open(next(iter(tuned.values())).start.base)
    changes = {name: changes_of(own.loaded.model, base) for name, own in tuned.items()}
    context.record("fine_tuned", {name: {"points": tuned[name].score, **sizes(changes[name])} for name in tuned})
    metrics = {seed: _dropped(settings, tuned, base, seed, context) for seed in range(settings.seeds)}
    metrics[0] |= _files(settings, tuned, base, context)
    inputs = {name: _inputs(own, settings.texts) for name, own in tuned.items()}
    best = _chosen(settings, tuned, base, changes, inputs, context)
    for seed in range(settings.merges):
        metrics[seed] |= _judged(tuned, base, best, inputs, seed, context)
    return metrics


def _dropped(
    settings: Settings, tuned: Mapping[str, Tuned], base: Base, seed: int, context: Context
) -> dict[str, float]:
    """Points below the fine-tuning, each task and their mean: rescaled and not, entries chosen in every way."""
    arms: dict[str, dict[str, Any]] = {
        "90": {"p": settings.p},
        "90_plain": {"p": settings.p, "rescale": False},
        "90_size": {"p": settings.p, "choice": "size"},
    }
    if seed == 0:
        arms["99"] = {"p": settings.more}
        arms |= {f"{p:.0%}_largest".replace("%", ""): {"p": p, "choice": "largest"} for p in settings.largest}
    found: dict[str, float] = {}
    for arm, how in arms.items():
        for name, own in tuned.items():
            model = Delta.of(base, own.folder, seed=seed, **how).model(base)
            found[f"drop_{arm}_{name}"] = own.score - points(model, own.loaded, own.start.rows.proof)
        found[f"drop_{arm}"] = fmean(found[f"drop_{arm}_{name}"] for name in tuned)
    found["rescale_gain"] = found["drop_90_plain"] - found["drop_90"]
    context.log(f"seed {seed}: {found}")
    return found


def _files(settings: Settings, tuned: Mapping[str, Tuned], base: Base, context: Context) -> dict[str, float]:
    """The largest file over the encoder in fp32, and how far what files restore is from what they were made of."""
    found: dict[str, float] = {}
    differences = []
    for name, own in tuned.items():
        file = context.work / f"dare-{name}.delta"
        delta = Delta.of(base, own.folder, settings.p)
        found[f"file_share_{name}"] = save_delta(delta, file) / base.bytes
        wanted, restored = delta.model(base).state_dict(), load_delta(file, base).model(base).state_dict()
        differences += [float((restored[key] - tensor).abs().max()) for key, tensor in wanted.items()]
    found["file_share"] = max(found.values())
    return found | {"file_difference": max(differences)}


def _inputs(own: Tuned, texts: int) -> Inputs:
    """What a fine-tuning's matrices read on rows that it was trained on."""
    task, loaded = own.loaded.model.task, own.loaded
    rows = LabelledRows.encode(task, drawn(own.start.rows.train, texts), loaded.tokenizer, loaded.max_len)
    return inputs_of(loaded.model.encoder, list(packed_batches(rows.flat)))


def _chosen(
    settings: Settings,
    tuned: Mapping[str, Tuned],
    base: Base,
    changes: Mapping[str, Mapping[str, Tensor]],
    inputs: Mapping[str, Inputs],
    context: Context,
) -> Merging:
    """The merging of the grid whose worst task loses least on rows of dev."""
    rows = {name: drawn(own.start.rows.dev, settings.chosen_by) for name, own in tuned.items()}
    full = {name: points(own.loaded.model, own.loaded, rows[name]) for name, own in tuned.items()}
    grid: list[tuple[Merging, dict[str, float]]] = []
    for merging in _grid(settings):
        kept = {name: drop_all(some, merging.p, 0, label=name) for name, some in changes.items()}
        state, losses = _joined(merging, base, kept, inputs), {}
        for name, own in tuned.items():
            model = task_model(base, state, head_of(own.loaded.model), own.loaded.model.task)
            losses[name] = full[name] - points(model, own.loaded, rows[name])
        grid.append((merging, losses))
        context.log(f"{merging}: {losses}")
    context.record("merging_grid", [{**vars(merging), **losses} for merging, losses in grid])
    best, _ = min(grid, key=lambda tried: max(tried[1].values()))
    context.record("merging", vars(best))
    return best


def _joined(
    merging: Merging, base: Base, kept: Mapping[str, Mapping[str, Tensor]], inputs: Mapping[str, Inputs]
) -> dict[str, Tensor]:
    """The encoder's tensors that a merging gives."""
    if merging.method == "regmean":
        return regmean({name: add(base.state, own) for name, own in kept.items()}, inputs, merging.weights)
    weighed = [(merging.weights.get(name, 1.0), own) for name, own in kept.items()]
    changes = {
        key: merging.scale * combine([weight * own[key] for weight, own in weighed], merging.method, merging.density)
        for key in base.state
    }
    return add(base.state, changes)


def _grid(settings: Settings) -> list[Merging]:
    """Every merging that is tried."""
    names, found = list(settings.weights), []
    for p in settings.dropped:
        for chosen in itertools.product(*settings.weights.values()):
            found.append(Merging(p=p, method="arithmetic", weights=dict(zip(names, chosen, strict=True))))
    for chosen in settings.solved:
        found.append(Merging(p=0.0, method="regmean", weights=dict(zip(names, chosen, strict=True))))
    return found + [Merging(p=0.0, method="ties", scale=scale, density=settings.density) for scale in settings.ties]


def _judged(
    tuned: Mapping[str, Tuned],
    base: Base,
    best: Merging,
    inputs: Mapping[str, Inputs],
    seed: int,
    context: Context,
) -> dict[str, float]:
    """Points that each task loses on the proof rows, and the most of them, with what `seed` drops."""
    out = context.work / f"dare-merged-{seed}"
    shutil.rmtree(out, ignore_errors=True)
    folders = {name: own.folder for name, own in tuned.items()}
    merged = merge(
        base.folder,
        folders,
        out,
        best.p,
        best.method,
        seed,
        scale=best.scale,
        weights=best.weights,
        density=best.density,
        inputs=inputs,
    )
    losses = {
        f"merged_drop_{name}": own.score - folder_points(merged.folders[name], own.start.rows.proof)
        for name, own in tuned.items()
    }
    shutil.rmtree(out)
    return {**losses, "merged_worst_drop": max(losses.values())}
