"""DSEE against fine-tuning of all weights and against low-rank updates of unpruned ones, on the same rows and steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recipes.claims import Tier
from recipes.compressed import TINY, begin, folder_points
from recipes.pst.recipe import adapted, least_sparsity, trained_share
from recipes.runner import Context
from terrazzo.tasks.adapters import AdapterConfig, DseeConfig, LoraConfig


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One tier.

    Args:
        rows: that are trained on, drawn by each seed; dev: that are looked at meanwhile; proof: that judge.
        lr: of all weights; adapter_lr: of adapters.
    """

    task: str = "sst2"
    rows: int = 2_000
    dev: int = 200
    proof: int | None = None
    dsee: DseeConfig = DseeConfig()
    lora: LoraConfig = LoraConfig(rank=16, alpha=32.0, targets=("qkv",))
    tuning: Mapping[str, Any] = field(default_factory=dict)
    lr: float = 1e-4
    adapter_lr: float = 1e-3
    seeds: int = 3


SETTINGS = {
    "smoke": Settings(tuning={**TINY, "epochs": 4.0}, lr=1e-2, adapter_lr=1e-2, seeds=1),
    "small": Settings(proof=1_000, tuning={"epochs": 3.0}),
}


def run(tier: Tier, context: Context) -> dict[int, dict[str, float]]:
    """Points by seed of DSEE, of LoRA and of full training; what is trained, and zeros."""
    settings = SETTINGS[tier]
    context.record("config", settings)
    start = begin(tier, settings.task, context, settings.proof)
    share = trained_share(start, settings.dsee)
    arms: dict[str, tuple[AdapterConfig | None, float]] = {
        "dsee": (settings.dsee, settings.adapter_lr),
        "lora": (settings.lora, settings.adapter_lr),
        "full": (None, settings.lr),
    }
    metrics: dict[int, dict[str, float]] = {}
    for seed in range(settings.seeds):
        folders = {
            name: adapted(
                start,
                name,
                adapter,
                settings.rows,
                settings.dev,
                seed,
                {**settings.tuning, "lr": (lr,)},
                context,
            )
            for name, (adapter, lr) in arms.items()
        }
        own = {name: folder_points(folder, start.rows.proof) for name, folder in folders.items()}
        own |= {"drop": own["full"] - own["dsee"], "behind_lora": own["lora"] - own["dsee"]}
        metrics[seed] = {**own, "trained_share": share, "least_sparsity": least_sparsity(folders["dsee"])}
        context.log(f"seed {seed}: {metrics[seed]}")
    return metrics
