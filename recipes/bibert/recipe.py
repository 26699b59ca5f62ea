"""A binary student of a dense teacher, with direction matching and without; what it weighs packed, and its products."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recipes.claims import Tier
from recipes.compressed import TINY, Start, around, begin, drawn, packed_rows, points, trained, workload
from recipes.runner import Context
from terrazzo.checkpoint import save_model
from terrazzo.compression import DistillConfig, DistillWorkload, binarise, pack_binary
from terrazzo.compression.binary import pack_bits, xnor_matmul
from terrazzo.compression.quantise import save_packed
from terrazzo.compression.sites import matrices
from terrazzo.errors import InputError
from terrazzo.nn.binary import BinaryLinear, binary_attention, binary_weight, signs
from terrazzo.nn.block import Block
from terrazzo.tasks import Example, TaskModel
from terrazzo.tasks.model import LoadedTask, load_task_model

#: Products of this many rows of real inputs are compared.
_COMPARED = 32


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One tier.

    Args:
        rows: that are trained on; proof: that judge.
        embeddings: token embeddings are binary too, as in the paper.
        distill: with direction matching; without it its weight is 0 and all else the same.
        tuning: of the training.
    """

    task: str = "sst2"
    rows: int | None = None
    proof: int | None = None
    embeddings: bool = True
    distill: DistillConfig = DistillConfig(
        labels=0.5,
        outputs=1.0,
        temperature=1.0,
        hidden=1.0,
        relations=1.0,
        relation_heads=12,
        relation_kind="direction",
        relation_blocks="every",
    )
    tuning: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 3


SETTINGS = {
    "smoke": Settings(tuning=TINY, distill=replace(Settings().distill, relation_heads=2), seeds=1),
    "small": Settings(rows=8_000, proof=2_500, tuning={"lr": (5e-4,), "epochs": 3.0}, seeds=2),
}


def run(tier: Tier, context: Context) -> dict[int, dict[str, float]]:
    """Points by seed, which draws the rows and their order; files and products of each seed's model."""
    if tier == "paper":
        raise InputError("the paper tier needs BERT-base on all of GLUE; run --tier small")
    settings = SETTINGS[tier]
    context.record("config", settings)
    start = begin(tier, settings.task, context, settings.proof)
    dense = load_task_model(start.dense(0))
    dense.model.eval()
    always = majority(start.rows.train, start.rows.proof)
    whole = points(dense.model, dense, start.rows.proof)
    context.log(f"dense {whole:.2f}, always the commoner class {always:.2f}")
    metrics: dict[int, dict[str, float]] = {}
    for seed in range(settings.seeds):
        rows = drawn(start.rows.train, settings.rows, seed)
        folders = {arm: _student(settings, start, dense, rows, seed, arm, context) for arm in ("dmd", "plain")}
        models = {arm: load_task_model(folder).model.eval() for arm, folder in folders.items()}
        scores = {arm: points(model, dense, start.rows.proof) for arm, model in models.items()}
        metrics[seed] = {
            "dense": whole,
            "majority": always,
            "binary": scores["dmd"],
            "binary_without_dmd": scores["plain"],
            "gain_over_majority": scores["dmd"] - always,
            "dmd_gain": scores["dmd"] - scores["plain"],
            **_packed(models["dmd"], scores["dmd"], dense, start, context.work / f"bibert-packed-{seed}"),
            **inspected(models["dmd"], dense, start.rows.dev[:_COMPARED]),
        }
        context.log(f"seed {seed}: {metrics[seed]}")
    return metrics


def majority(train: Sequence[Example], judged: Sequence[Example]) -> float:
    """Percent of the judged rows that have the commonest answer of the training rows."""
    ((commonest, _),) = Counter(row.target for row in train).most_common(1)
    return 100 * sum(row.target == commonest for row in judged) / len(judged)


def _student(
    settings: Settings,
    start: Start,
    dense: LoadedTask,
    rows: Sequence[Example],
    seed: int,
    arm: str,
    context: Context,
) -> Path:
    """The task folder of a binary student that begins with the teacher's weights."""
    options = start.options(context.work / f"bibert-{arm}-{seed}", seed=seed, **settings.tuning)
    student = around(binarise(dense.model.encoder, settings.embeddings), dense.model)
    inner = workload(dense, rows, start.rows.dev, student, options.batch_size)
    distill = settings.distill if arm == "dmd" else replace(settings.distill, relations=0.0)
    teacher = copy.deepcopy(dense.model)
    return trained(options, DistillWorkload(inner=inner, teacher=teacher, options=distill), len(rows), context.log)


def _packed(model: TaskModel, score: float, dense: LoadedTask, start: Start, folder: Path) -> dict[str, float]:
    """The model's file at one bit a weight: how small, and whether it says the same when it is opened again."""
    tokenizer = folder.with_name(f"{folder.name}.tokenizer.json")
    tokenizer.parent.mkdir(parents=True, exist_ok=True)
    dense.tokenizer.save(str(tokenizer))
    packed = pack_binary(model)
    save_packed(folder, packed, tokenizer, max_len=dense.max_len)
    floats = save_model(folder.with_name(f"{folder.name}-floats"), dense.model.encoder, tokenizer)
    opened = load_task_model(folder).model.eval()
    written, read = (_answers(one, dense, start.rows.proof) for one in (packed.model.eval(), opened))
    return {
        "file_bytes": (folder / "model.packed.safetensors").stat().st_size,
        "file_factor": (floats / "model.safetensors").stat().st_size
        / (folder / "model.packed.safetensors").stat().st_size,
        "answers_that_differ": float((written != read).any(1).sum()),
        "packing_loss": score - points(opened, dense, start.rows.proof),
    }


@torch.no_grad()
def _answers(model: TaskModel, like: LoadedTask, rows: Sequence[Example]) -> Tensor:
    return torch.cat([model(batch) for batch in packed_rows(like, rows)])


@torch.no_grad()
def inspected(model: TaskModel, like: LoadedTask, rows: Sequence[Example]) -> dict[str, float]:
    """How many values the rows of binary matrices and the weights of attention have on real rows, and how far the
    products of packed bits are from those of floats.
    """
    encoder = copy.deepcopy(model.encoder)
    gaps, values = [0.0], {0.0}

    def compare(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(module, BinaryLinear)
        x_TI, weight_OI = signs(given[0]), signs(module.weight - module.weight.mean(1, keepdim=True))
        bits = [pack_bits((part > 0).numpy()) for part in (x_TI, weight_OI)]
        exact = torch.from_numpy(xnor_matmul(bits[0], bits[1], x_TI.shape[1]).astype(np.float32))
        gaps.append(float((exact - x_TI @ weight_OI.T).abs().max()))

    def watched(scores: Tensor) -> Tensor:
        weights = binary_attention(scores)
        values.update(weights.unique().tolist())
        return weights

    for block in encoder.blocks:
        assert isinstance(block, Block) and block.attention.weigh is binary_attention
        block.attention.weigh = watched
        block.mlp.down.register_forward_pre_hook(compare)
    for batch in packed_rows(like, rows):
        encoder(batch)
    counts = [len(row.unique()) for weight in matrices(encoder).values() for row in binary_weight(weight)]
    return {"row_values": max(counts), "attention_values": len(values), "product_difference": max(gaps)}
