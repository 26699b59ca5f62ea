"""DSEE against fine-tuning of all weights and against low-rank updates of unpruned ones, on the same rows and steps."""

from __future__ import annotations

from dataclasses import dataclass

from recipes.claims import Tier
from recipes.compressed import begin, folder_points
from recipes.pst.recipe import ARMS, Arms, adapted, least_sparsity, trained_share
from recipes.runner import Context
from terrazzo.tasks.adapters import AdapterConfig, DseeConfig, LoraConfig


@dataclass(frozen=True, kw_only=True)
class Settings(Arms):
    """One tier; adapter_lr: of adapters."""

    dsee: DseeConfig = DseeConfig()
    lora: LoraConfig = LoraConfig(rank=16, alpha=32.0, targets=("qkv",))
    adapter_lr: float = 1e-3


SETTINGS = {"smoke": Settings(**ARMS["smoke"], adapter_lr=1e-2), "small": Settings(**ARMS["small"])}


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
            name: adapted(settings, start, name, adapter, seed, {**settings.tuning, "lr": (lr,)}, context)
            for name, (adapter, lr) in arms.items()
        }
        own = {name: folder_points(folder, start.rows.proof) for name, folder in folders.items()}
        own |= {"drop": own["full"] - own["dsee"], "behind_lora": own["lora"] - own["dsee"]}
        metrics[seed] = {**own, "trained_share": share, "least_sparsity": least_sparsity(folders["dsee"])}
        context.log(f"seed {seed}: {metrics[seed]}")
    return metrics
