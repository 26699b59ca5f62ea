"""Tokens to a fixed loss: the best optimizer recipe against decoupled AdamW, both tuned here.

Every run trains on English Wikipedia to the end of its own decayed schedule; nothing is read off an unfinished run.
AdamW's held-out loss at the full token budget is the mark. The challenger runs at full and smaller budgets; where its
loss crosses the mark, interpolated in the logarithm of tokens, is the answer. A learning-rate grid goes on while its
best is at an end.

    python -m benchmarks.optimizers --tier small --data-root DATASETS
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.result import RESULTS, Row, write
from recipes.runner import Context, data_root
from terrazzo.data import Corpus, PrepareConfig, prepare
from terrazzo.errors import RunError
from terrazzo.optim import OPTIMIZERS
from terrazzo.train import Budget, Init, RunConfig, Sampling, Stage, train
from terrazzo.train.metrics import MetricsLog

SOURCE = "English Wikipedia articles as JSON lines with a field text, e.g. Hugging Face wikimedia/wikipedia"

#: Spacing of the learning-rate grids.
LR_FACTOR = 2.0


@dataclass(frozen=True, kw_only=True)
class Tier:
    """How large the race is.

    Args:
        parts: files of the corpus that are read.
        lrs: where each learning-rate grid begins.
        budgets: shares of the full budget that the challenger runs at.
    """

    size: str
    depth: int
    parts: int
    vocab_size: int
    max_len: int
    batch_tokens: int
    steps: int
    eval_tokens: int
    seeds: tuple[int, ...]
    lrs: dict[str, tuple[float, ...]]
    budgets: tuple[float, ...]
    widest_grid: int = 6


TIERS = {
    "smoke": Tier(
        size="tiny",
        depth=1,
        parts=1,
        vocab_size=1024,
        max_len=64,
        batch_tokens=1024,
        steps=8,
        eval_tokens=4096,
        seeds=(0, 1),
        lrs={"adamw": (2e-3,), "stable_adamw": (2e-3,), "lion": (2e-4,), "muon": (2e-3,)},
        budgets=(1.0, 1 / 1.6),
        widest_grid=1,
    ),
    "small": Tier(
        size="tiny",
        depth=4,
        parts=1,
        vocab_size=1024,
        max_len=64,
        batch_tokens=1024,
        steps=1500,
        eval_tokens=65_536,
        seeds=(0, 1, 2),
        lrs={
            "adamw": (1e-3, 2e-3, 4e-3),
            "muon": (2e-3, 4e-3, 8e-3),
        },
        budgets=(1.0, 1 / 1.6),
    ),
}


@dataclass(frozen=True)
class Entry:
    """One run: an optimizer, its learning rate (and that of Muon's AdamW), a seed, a number of steps."""

    kind: str
    lr: float
    aux_lr: float | None
    seed: int
    steps: int


class Race:
    """Runs entries in the processes of `pool`, each once: a finished run in `work` is read, not repeated."""

    def __init__(self, tier: Tier, data: Path, work: Path, pool: ProcessPoolExecutor) -> None:
        self.tier, self.data, self.work, self.pool = tier, data, work, pool
        self.results: dict[Entry, dict[str, float]] = {}

    def losses(self, entries: Sequence[Entry]) -> list[float]:
        """Final held-out losses, in nats a masked token; a run that diverged has infinity."""
        new = [entry for entry in dict.fromkeys(entries) if entry not in self.results]
        for entry, result in zip(new, self.pool.map(run, [self.config(entry) for entry in new]), strict=True):
            self.results[entry] = result
            print(f"  {entry}: {result['heldout_loss']:.4f}", flush=True)
        return [self.results[entry]["heldout_loss"] for entry in entries]

    def tuned(self, kind: str, aux_lr: float | None = None) -> tuple[float, float]:
        """The best learning rate of `kind` and its loss, on the first seed, with the best inside the grid."""
        grid = list(self.tier.lrs[kind])
        while True:
            losses = self.losses([Entry(kind, lr, aux_lr, self.tier.seeds[0], self.tier.steps) for lr in grid])
            best = min(range(len(grid)), key=losses.__getitem__)
            if 0 < best < len(grid) - 1 or len(grid) >= self.tier.widest_grid:
                return grid[best], losses[best]
            grid = [grid[0] / LR_FACTOR, *grid] if best == 0 else [*grid, grid[-1] * LR_FACTOR]

    def config(self, entry: Entry) -> RunConfig:
        """The run of an entry, in a folder named after everything that decides it."""
        tier = self.tier
        aux = {} if entry.aux_lr is None else {"aux": OPTIMIZERS["adamw"](lr=entry.aux_lr)}
        stage = Stage(
            model=Init(size=tier.size, fields={"dropout": 0.0, "depth": tier.depth}),
            sampling=Sampling(max_len=tier.max_len, batch_tokens=tier.batch_tokens),
            optimizer=OPTIMIZERS[entry.kind](lr=entry.lr, **aux),
            budget=Budget(steps=entry.steps),
        )
        name = hashlib.sha256(repr((stage, entry.seed, tier.eval_tokens, Corpus.open(self.data).fingerprint)).encode())
        return RunConfig(
            data=str(self.data),
            out=str(self.work / "runs" / f"{entry.kind}-{name.hexdigest()[:12]}"),
            stages=(stage,),
            seed=entry.seed,
            device="cpu",
            threads=1,
            checkpoint_every=10**9,
            eval_every=10**9,
            eval_tokens=tier.eval_tokens,
        )


def run(config: RunConfig) -> dict[str, float]:
    """Final held-out loss, tokens and seconds of a run; what an interrupted attempt left is thrown away first."""
    out = Path(config.out)
    if not (out / "model").is_dir():
        shutil.rmtree(out, ignore_errors=True)
        try:
            train(config, hooks=lambda folder: [MetricsLog(folder / "metrics.jsonl")])
        except RunError:
            return {"heldout_loss": math.inf, "tokens": math.nan, "seconds": math.nan}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    final = [line for line in lines if "heldout_loss" in line][-1]
    return {key: final[key] for key in ("heldout_loss", "tokens", "seconds")}


def fewer_tokens(mark: float, losses: Sequence[float], budgets: Sequence[float]) -> float:
    """How many times fewer tokens the challenger needs to reach `mark`, from its final losses at shares of the budget.

    Interpolated in the logarithm of the budget; 1 where even the full budget falls short, and never more than what the
    smallest budget shows.
    """
    order = np.argsort(losses)
    log_budgets = np.log(np.asarray(budgets))[order]
    return float(np.exp(-np.interp(mark, np.asarray(losses)[order], log_budgets)))


def bootstrap(
    marks: Sequence[float], losses: np.ndarray, budgets: Sequence[float], draws: int = 10_000
) -> tuple[float, float]:
    """95 % interval of `fewer_tokens` of the means, over seeds drawn again; `losses` is (seeds, budgets)."""
    generator = np.random.default_rng(0)
    picks = generator.integers(0, len(marks), size=(draws, len(marks)))
    values = [fewer_tokens(float(np.mean(np.asarray(marks)[p])), list(losses[p].mean(0)), budgets) for p in picks]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def measure(race: Race) -> tuple[Row, dict[str, Any]]:
    """Tune all optimizers, race the best of them against AdamW over seeds and budgets."""
    tier = race.tier
    adamw_lr, adamw_loss = race.tuned("adamw")
    best = {"adamw": (adamw_lr, adamw_loss)}
    aux_lrs: dict[str, float] = {}
    for kind in tier.lrs:
        if kind != "adamw":
            best[kind] = race.tuned(kind, adamw_lr if kind == "muon" else None)
    if "muon" in best:
        lr, aux_grid = best["muon"][0], [adamw_lr, adamw_lr * LR_FACTOR]
        losses_of_aux = race.losses([Entry("muon", lr, aux, tier.seeds[0], tier.steps) for aux in aux_grid])
        aux_lrs["muon"] = aux_grid[int(np.argmin(losses_of_aux))]
        best["muon"] = (lr, min(losses_of_aux))
    winner = min((kind for kind in best if kind != "adamw"), key=lambda kind: best[kind][1])
    aux_lr = aux_lrs.get(winner)
    marks = race.losses([Entry("adamw", adamw_lr, None, seed, tier.steps) for seed in tier.seeds])
    steps = [round(tier.steps * budget) for budget in tier.budgets]
    losses = np.array([race.losses([Entry(winner, best[winner][0], aux_lr, s, n) for n in steps]) for s in tier.seeds])
    value = fewer_tokens(statistics.fmean(marks), list(losses.mean(0)), tier.budgets)
    low, high = bootstrap(marks, losses, tier.budgets)
    bound = "; a lower bound: no smaller budget was run" if value >= 0.999 / min(tier.budgets) else ""
    row = Row(
        id="C12",
        metric="tokens to a fixed loss, best optimizer recipe",
        peer="our decoupled AdamW, tuned",
        floor=1.25,
        goal=1.6,
        value=value,
        low=low,
        high=high,
        note=f"{winner}; {tier.size}, {tier.steps} steps of {tier.batch_tokens} tokens; interval over seeds{bound}",
    )
    return row, {
        "winner": winner,
        "tuned": {kind: {"lr": lr, "heldout_loss": loss} for kind, (lr, loss) in best.items()},
        "aux_lr": aux_lrs,
        "adamw_heldout_loss": marks,
        "challenger_heldout_loss": {f"{b:.3f}": list(losses[:, i]) for i, b in enumerate(tier.budgets)},
        "tier": vars(tier),
        "runs": [vars(entry) | result for entry, result in race.results.items()],
    }


def prepared(context: Context, tier: Tier) -> Path:
    """The data folder of a tier, made if it is not there."""
    parts = sorted(context.data("enwiki", SOURCE).glob("*.jsonl"))[: tier.parts]
    out = context.work / f"enwiki-{tier.parts}-{tier.vocab_size}"
    prepare([str(part) for part in parts], out, PrepareConfig(vocab_size=tier.vocab_size))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=TIERS, default="small")
    parser.add_argument("--data-root", type=Path, help="folder that holds enwiki/ (default: TERRAZZO_DATA)")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "terrazzo-optimizers")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    options = parser.parse_args()
    tier, context = TIERS[options.tier], Context(work=options.work, data_root=data_root(options.data_root))
    data = prepared(context, tier)
    with ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        row, details = measure(Race(tier, data, options.work, pool))
    write("optimizers", [row], details, folder=RESULTS if options.tier == "small" else options.work)


if __name__ == "__main__":
    main()
