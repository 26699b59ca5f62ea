"""Lion against AdamW: state bytes, step time, and held-out loss at a small and a four times larger batch."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recipes.arms import arm, curve, per_seed, spread, train_arms
from recipes.claims import Tier
from recipes.runner import Context
from recipes.wikipedia import SOURCE, prepared_part
from terrazzo.data import Corpus, evaluation_batches, word_start_table
from terrazzo.nn import MaskedLM
from terrazzo.objectives import MLMConfig
from terrazzo.optim import AdamWConfig, LionConfig, optimizer_state_bytes
from terrazzo.testing import tiny_corpus
from terrazzo.train import Budget, Init, RunConfig, Sampling, Stage
from terrazzo.train.distributed import StepModule

Optimizer = AdamWConfig | LionConfig
#: batch and optimizer
Arm = tuple[str, str]
BATCHES = ("small", "large")
KINDS = ("adamw", "lion")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One tier.

    Args:
        model: the encoder that is trained; timed: the encoder whose steps are timed.
        batch_tokens: tokens of the small batch; the large one is four times that, with a quarter of the `steps`.
        lrs: where the grid of each optimizer begins, for each batch; it grows while its best is at an end.
        widest_grid: most points of a grid.
    """

    model: Init
    timed: Init
    timed_tokens: int = 1024
    timed_rounds: int = 15
    max_len: int = 64
    megabytes: float = 8
    vocab_size: int = 2048
    batch_tokens: int = 1024
    steps: int = 640
    seeds: tuple[int, ...] = (0, 1, 2)
    lrs: dict[str, dict[str, tuple[float, ...]]]
    widest_grid: int = 5
    lr_factor: float = 2.5
    eval_tokens: int = 65_536
    workers: int = 2
    device: str = "cpu"


_GRIDS: dict[str, dict[str, tuple[float, ...]]] = {
    "small": {"adamw": (2e-3, 5e-3, 1.25e-2), "lion": (2e-4, 5e-4, 1.25e-3)},
    "large": {"adamw": (4e-3, 1e-2, 2.5e-2), "lion": (4e-4, 1e-3, 2.5e-3)},
}
_NARROW = Init(size="tiny", fields={"width": 64, "dropout": 0.0})

SETTINGS = {
    "smoke": Settings(
        model=_NARROW,
        timed=_NARROW,
        timed_rounds=3,
        batch_tokens=256,
        steps=8,
        seeds=(0, 1),
        lrs={batch: {"adamw": (5e-3,), "lion": (5e-4,)} for batch in BATCHES},
        widest_grid=1,
        eval_tokens=2048,
        workers=0,
    ),
    "small": Settings(model=_NARROW, timed=Init(size="mini", fields={"dropout": 0.0}), lrs=_GRIDS),
    "paper": Settings(
        model=Init(size="base", fields={"dropout": 0.0}),
        timed=Init(size="base", fields={"dropout": 0.0}),
        timed_tokens=4096,
        max_len=512,
        megabytes=100,
        vocab_size=32_768,
        batch_tokens=131_072,
        steps=40_000,
        lrs={
            "small": {"adamw": (5e-4, 1e-3, 2e-3), "lion": (5e-5, 1e-4, 2e-4)},
            "large": {"adamw": (1e-3, 2e-3, 4e-3), "lion": (1e-4, 2e-4, 4e-4)},
        },
        lr_factor=2.0,
        eval_tokens=1 << 20,
        workers=0,
        device="auto",
    ),
}


def run(tier: Tier, context: Context) -> dict[int, dict[str, float]]:
    """Time the optimizers, tune their learning rates at each batch on the first seed, repeat the best over seeds."""
    settings = SETTINGS[tier]
    context.record("config", vars(settings))
    corpus = _corpus(tier, settings, context)
    race = Race(settings, corpus.path, context)
    race.tune()
    losses = race.over_seeds()
    gain = {
        batch: [a - b for a, b in zip(losses[batch, "adamw"], losses[batch, "lion"], strict=True)] for batch in BATCHES
    }
    spreads = {batch: spread(losses[batch, "adamw"], losses[batch, "lion"]) for batch in BATCHES}
    ratios = [race.best[batch, "adamw"] / race.best[batch, "lion"] for batch in BATCHES]
    timings = [timing(settings, corpus, seed) for seed in settings.seeds]
    context.record("best_lr", {f"{batch} {kind}": lr for (batch, kind), lr in race.best.items()})
    context.record("losses", {f"{batch} {kind}": values for (batch, kind), values in losses.items()})
    context.record(
        "grid", {" ".join(a): {f"{lr:.3g}": x for lr, x in losses.items()} for a, losses in race.grid.items()}
    )
    context.record("curves", race.curves())
    context.record("seconds", timings)
    return per_seed(
        settings.seeds,
        {
            "state_ratio": [t["lion_state_bytes"] / t["adamw_state_bytes"] for t in timings],
            "step_speedup": [_step(t, "adamw") / _step(t, "lion") for t in timings],
            "optimizer_speedup": [t["adamw"] / t["lion"] for t in timings],
            "lr_ratio": statistics.geometric_mean(ratios),
            **{f"loss_{batch}_{kind}": values for (batch, kind), values in losses.items()},
            **{f"gain_{batch}": gain[batch] for batch in BATCHES},
            **{f"spread_{batch}": spreads[batch] for batch in BATCHES},
            "gain_growth": [large - small for small, large in zip(gain["small"], gain["large"], strict=True)],
            "spread": max(spreads.values()),
        },
    )


class Race:
    """The runs of a tier; `best` and `grid` hold what tuning found, by batch and optimizer."""

    def __init__(self, settings: Settings, data: Path, context: Context) -> None:
        self.settings, self.data, self.context = settings, data, context
        self.grid: dict[Arm, dict[float, float]] = {(b, k): {} for b in BATCHES for k in KINDS}

    @property
    def best(self) -> dict[Arm, float]:
        """The learning rate of the lowest loss so far."""
        return {a: min(losses, key=losses.__getitem__) for a, losses in self.grid.items()}

    def tune(self) -> None:
        """Run every grid on the first seed, and lengthen those whose best is at an end."""
        wanted = {a: list(self.settings.lrs[a[0]][a[1]]) for a in self.grid}
        while any(wanted.values()):
            arms = [(a, lr) for a, lrs in wanted.items() for lr in lrs]
            losses = self._losses([self._config(*a, lr, self.settings.seeds[0]) for a, lr in arms])
            for (a, lr), loss in zip(arms, losses, strict=True):
                self.grid[a][lr] = loss
            wanted = {a: self._beyond(a) for a in self.grid}

    def over_seeds(self) -> dict[Arm, list[float]]:
        """Held-out losses of every seed at the best learning rates."""
        arms = [(a, lr, seed) for a, lr in self.best.items() for seed in self.settings.seeds]
        losses = iter(self._losses([self._config(*a, lr, seed) for a, lr, seed in arms]))
        return {a: [next(losses) for _ in self.settings.seeds] for a in self.grid}

    def curves(self) -> dict[str, Any]:
        """The course of every best arm."""
        return {
            f"{batch} {kind}, seed {seed}": curve(self._config(batch, kind, lr, seed))
            for (batch, kind), lr in self.best.items()
            for seed in self.settings.seeds
        }

    def _beyond(self, of: Arm) -> list[float]:
        lrs, best = sorted(self.grid[of]), self.best[of]
        if len(lrs) >= self.settings.widest_grid or lrs[0] < best < lrs[-1]:
            return []
        return [best / self.settings.lr_factor if best == lrs[0] else best * self.settings.lr_factor]

    def _losses(self, configs: list[RunConfig]) -> list[float]:
        return train_arms(configs, self.settings.workers, self.context.log)

    def _config(self, batch: str, kind: str, lr: float, seed: int) -> RunConfig:
        settings, times = self.settings, 4 if batch == "large" else 1
        stage = Stage(
            model=settings.model,
            sampling=Sampling(max_len=settings.max_len, batch_tokens=settings.batch_tokens * times),
            optimizer=optimizer(kind, lr),
            budget=Budget(steps=settings.steps // times),
        )
        fields = {"device": settings.device, "eval_tokens": settings.eval_tokens}
        return arm(self.context.work, f"{kind}-{batch}", self.data, stage, seed, **fields)


def optimizer(kind: str, lr: float) -> Optimizer:
    """The paper's betas and epsilon for language models; the same decay a step for both, so Lion's lambda is larger."""
    if kind == "lion":
        return LionConfig(lr=lr, betas=(0.95, 0.98))
    return AdamWConfig(lr=lr, betas=(0.9, 0.99), eps=1e-6)


def timing(settings: Settings, corpus: Corpus, seed: int) -> dict[str, float]:
    """Median CPU seconds of forward and backward, and of each optimizer's step in turn, on one thread; state bytes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    objective = MLMConfig().build(corpus.special, corpus.vocab_size, word_start_table(corpus.tokenizer))
    module = StepModule(MaskedLM(settings.timed.encoder_config(corpus.vocab_size)), objective)
    batch = evaluation_batches(
        corpus.train,
        corpus.special,
        max_len=settings.max_len,
        objective=objective,
        micro_tokens=settings.timed_tokens,
        max_tokens=settings.timed_tokens,
    )[0]
    optimizers = {kind: optimizer(kind, 1e-6).build(module.model) for kind in KINDS}
    seconds: dict[str, list[float]] = {"model": [], **{kind: [] for kind in KINDS}}
    for _ in range(settings.timed_rounds):
        begin = time.process_time()
        module.zero_grad(set_to_none=True)
        module(batch)[0].backward()
        seconds["model"].append(time.process_time() - begin)
        for kind in KINDS:
            begin = time.process_time()
            optimizers[kind].step()
            seconds[kind].append(time.process_time() - begin)
    torch.set_num_threads(threads)
    state = {f"{kind}_state_bytes": float(optimizer_state_bytes(optimizers[kind])) for kind in KINDS}
    return {name: statistics.median(values[1:]) for name, values in seconds.items()} | state


def _step(seconds: dict[str, float], kind: str) -> float:
    return seconds["model"] + seconds[kind]


def _corpus(tier: Tier, settings: Settings, context: Context) -> Corpus:
    if tier == "smoke":
        path = context.work / "data"
        return Corpus.open(path) if (path / "data.json").is_file() else tiny_corpus(path)
    return prepared_part(
        context.data("enwiki", SOURCE),
        context.work,
        megabytes=settings.megabytes,
        vocab_size=settings.vocab_size,
        paragraphs=True,
    )
