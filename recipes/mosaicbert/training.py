"""Train one arm for a number of steps and evaluate it on fixed documents with fixed masks.

`python -m recipes.mosaicbert.training SPEC.json RESULT.json` runs one arm in a process of its own.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from recipes.mosaicbert.arms import ARMS, Shape, build
from terrazzo.config import config, from_dict
from terrazzo.data import Corpus, Loader, Stream, evaluation_batches, pieces_for_tokens
from terrazzo.objectives import MLMConfig
from terrazzo.optim import AdamWConfig, Schedule
from terrazzo.packed import Packed
from terrazzo.provenance import write_json_atomic


@config
class Recipe:
    """What all arms share.

    Args:
        batch_tokens: real tokens of a step, on average; the same documents for every arm.
        clip_norm: largest gradient norm.
    """

    shape: Shape = Shape()
    batch_tokens: int = 512
    optimizer: AdamWConfig = AdamWConfig(lr=1e-3)
    schedule: Schedule = Schedule()
    clip_norm: float = 1.0
    evaluations: int = 8
    eval_tokens: int = 16_384


@config
class Spec:
    """One run: an arm, a seed of weights and data order, and how long."""

    arm: str
    data: str
    steps: int
    recipe: Recipe
    seed: int = 0
    step_seconds: float = 0.0

    @property
    def name(self) -> str:
        """Short name of the run, for files and logs."""
        return f"{self.arm}-{self.seed}"


class Trainer:
    """An arm with its optimizer and its stream of batches; `step` does all the work of one step, data included."""

    def __init__(self, arm: str, corpus: Corpus, recipe: Recipe, seed: int) -> None:
        self.recipe = recipe
        self.objective = MLMConfig(rate=ARMS[arm].rate).build(corpus.special, corpus.vocab_size)
        self.model = build(ARMS[arm], recipe.shape, corpus, seed).train()
        self.optimizer = recipe.optimizer.build(self.model)
        max_len = recipe.shape.max_len
        pieces = pieces_for_tokens(corpus.train, corpus.special, max_len, recipe.batch_tokens)
        stream = Stream(corpus.train, corpus.special, max_len=max_len, pieces_per_step=pieces, seed=seed)
        self.loader = Loader(stream, self.objective, micro_tokens=pieces * max_len, workers=0)

    def step(self, progress: float) -> tuple[float, Packed]:
        """Returns the mean training loss and the batch of the step."""
        batches = next(self.loader)
        (batch,) = batches.batches
        loss = self.model(batch) / batches.weight
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * self.recipe.schedule(progress)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach()), batch


@torch.no_grad()
def heldout_loss(model: nn.Module, batches: Sequence[Packed]) -> float:
    """Mean loss over the masked tokens of `batches`."""
    model.eval()
    total = sum(float(model(batch)) for batch in batches)
    model.train()
    return total / sum(batch.masked_M.numel() for batch in batches if batch.masked_M is not None)


def fixed_batches(corpus: Corpus, recipe: Recipe) -> list[Packed]:
    """The same held-out documents with the same 15 % masks for every arm and seed."""
    return evaluation_batches(
        corpus.heldout,
        corpus.special,
        max_len=recipe.shape.max_len,
        objective=MLMConfig().build(corpus.special, corpus.vocab_size),
        micro_tokens=2048,
        max_tokens=recipe.eval_tokens,
    )


def train_arm(spec: Spec) -> dict[str, Any]:
    """Run a spec; returns its curve of held-out losses with tokens and seconds, and what it really took."""
    corpus = Corpus.open(spec.data)
    trainer, heldout = Trainer(spec.arm, corpus, spec.recipe, spec.seed), fixed_batches(corpus, spec.recipe)
    due = {math.ceil(spec.steps * (i + 1) / spec.recipe.evaluations) for i in range(spec.recipe.evaluations)}
    curve, tokens, cpu = [], 0, 0.0
    curve.append({"step": 0, "seconds": 0.0, "tokens": 0, "heldout_loss": heldout_loss(trainer.model, heldout)})
    for step in range(1, spec.steps + 1):
        begin = time.process_time()
        _, batch = trainer.step(step / spec.steps)
        cpu += time.process_time() - begin
        tokens += batch.num_tokens
        if step in due:
            loss = heldout_loss(trainer.model, heldout)
            curve.append({"step": step, "seconds": step * spec.step_seconds, "tokens": tokens, "heldout_loss": loss})
            print(f"{spec.name}: step {step}/{spec.steps}, {tokens:,} tokens, held-out loss {loss:.4f}", flush=True)
    return {
        "arm": spec.arm,
        "seed": spec.seed,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "steps": spec.steps,
        "cpu_seconds": round(cpu, 1),
        "curve": curve,
    }


def probe(arms: Sequence[str], corpus: Corpus, recipe: Recipe, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of one training step of each arm, in rounds that take all arms in turn over the same documents.

    Neighbours on a shared machine slow all arms of a round alike, so ratios within a round are steady.
    """
    trainers = {arm: Trainer(arm, corpus, recipe, seed=0) for arm in arms}
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for turn in range(rounds + 1):
        for arm, trainer in trainers.items():
            begin = time.process_time()
            trainer.step(0.5)
            if turn:  # the first step of each allocates
                seconds[arm].append(time.process_time() - begin)
    return seconds


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over rounds of the ratio of two arms' step times."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def seconds_to_reach(curve: Sequence[dict[str, float]], loss: float) -> float:
    """When a curve first falls to `loss`, linear between its points; infinite if it never does."""
    for before, after in itertools.pairwise(curve):
        if after["heldout_loss"] <= loss:
            share = (before["heldout_loss"] - loss) / (before["heldout_loss"] - after["heldout_loss"])
            return before["seconds"] + share * (after["seconds"] - before["seconds"])
    return math.inf


def main(spec_file: str, result_file: str) -> None:
    """Run the spec in one file and write the result to the other."""
    torch.set_num_threads(1)
    spec = from_dict(Spec, json.loads(Path(spec_file).read_text(encoding="utf-8")), spec_file)
    write_json_atomic(result_file, train_arm(spec))


if __name__ == "__main__":
    main(*sys.argv[1:])
