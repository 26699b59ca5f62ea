"""PST against training all weights: the same rows and steps, nine tenths of the weights removed on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.claims import Tier
from recipes.compressed import TINY, Start, begin, drawn, folder_points, fresh, trained, workload
from recipes.runner import Context
from recipes.tuning import fine_tuned
from terrazzo.compression import PruningWorkload, SparsitySchedule
from terrazzo.tasks.adapters import AdapterConfig, PstConfig, adapter_parameters, add_adapters, zero_shares
from terrazzo.tasks.model import load_task_model


@dataclass(frozen=True, kw_only=True)
class Arms:
    """What all arms of a comparison of adapters share at a tier.

    Args:
        rows: that are trained on, drawn by each seed; dev: that are looked at meanwhile; proof: that judge.
        tuning: of all arms; lr: of all weights.
    """

    task: str = "sst2"
    rows: int = 2_000
    dev: int = 200
    proof: int | None = None
    tuning: Mapping[str, Any] = field(default_factory=dict)
    lr: float = 1e-4
    seeds: int = 3


@dataclass(frozen=True, kw_only=True)
class Settings(Arms):
    """One tier; schedule: of the pruning by magnitude, at PST's times."""

    pst: PstConfig = PstConfig()
    schedule: SparsitySchedule = SparsitySchedule(start=0.0, end=0.9, begin=0.1, finish=0.7, times=15)


#: The fields of `Arms` at each tier.
ARMS: Mapping[str, Mapping[str, Any]] = {
    "smoke": {"tuning": {**TINY, "epochs": 4.0}, "lr": 1e-2, "seeds": 1},
    "small": {"proof": 1_000, "tuning": {"epochs": 3.0}},
}
SETTINGS = {"smoke": Settings(**ARMS["smoke"], pst=PstConfig(every=2)), "small": Settings(**ARMS["small"])}


def run(tier: Tier, context: Context) -> dict[int, dict[str, float]]:
    """Points by seed of PST, of full training pruned by magnitude, and of full training; what is trained, and zeros."""
    settings = SETTINGS[tier]
    context.record("config", settings)
    start = begin(tier, settings.task, context, settings.proof)
    share = trained_share(start, settings.pst)
    metrics: dict[int, dict[str, float]] = {}
    for seed in range(settings.seeds):
        tuning = {**settings.tuning, "lr": (settings.lr,)}
        folders = {
            "pst": adapted(settings, start, "pst", settings.pst, seed, tuning, context),
            "full": adapted(settings, start, "full", None, seed, tuning, context),
            "full_sparse": _full_sparse(settings, start, seed, tuning, context),
        }
        own = {name: folder_points(folder, start.rows.proof) for name, folder in folders.items()}
        own |= {"drop": own["full"] - own["pst"], "behind_full_sparse": own["full_sparse"] - own["pst"]}
        metrics[seed] = {**own, "trained_share": share, "least_sparsity": least_sparsity(folders["pst"])}
        context.log(f"seed {seed}: {metrics[seed]}")
    return metrics


def adapted(
    settings: Arms,
    start: Start,
    name: str,
    adapter: AdapterConfig | None,
    seed: int,
    tuning: Mapping[str, Any],
    context: Context,
) -> Path:
    """The task folder of a fine-tuning with an adapter, or of all weights, on rows that `seed` draws."""
    out = context.work / f"tuned-{start.name}-{settings.rows}-{name}-{seed}"
    options = start.options(out, seed=seed, adapter=adapter, **tuning)
    chosen = drawn(start.rows.train, settings.rows, seed)
    return fine_tuned(options, chosen, drawn(start.rows.dev, settings.dev), context.log)[seed]


def _full_sparse(settings: Settings, start: Start, seed: int, tuning: Mapping[str, Any], context: Context) -> Path:
    """All weights trained, the smallest of all matrices together removed on PST's schedule."""
    rows, dev = drawn(start.rows.train, settings.rows, seed), drawn(start.rows.dev, settings.dev)
    out = context.work / f"tuned-{start.name}-{settings.rows}-magnitude-{seed}"
    options = start.options(out, seed=seed, **tuning)
    like = fresh(start, rows, seed)
    inner = workload(like, rows, dev, like.model, options.batch_size)
    return trained(options, PruningWorkload(inner, settings.schedule), len(rows), context.log)


def trained_share(start: Start, adapter: AdapterConfig) -> float:
    """Parameters of an adapter over all of the encoder's, embeddings included; the head is left out of both."""
    encoder = fresh(start, start.rows.train, 0).model.encoder
    whole = sum(parameter.numel() for parameter in encoder.parameters())
    add_adapters(encoder, adapter, empty=True)
    return sum(parameter.numel() for parameter in adapter_parameters(encoder).values()) / whole


def least_sparsity(folder: Path) -> float:
    """The smallest share of zeros of a layer of the blocks in a saved model."""
    return min(zero_shares(load_task_model(folder).model.encoder).values())
