"""A model that was cut learns more from the model that it was cut from than from the rows' own answers."""

from __future__ import annotations

import copy

import torch

from terrazzo.compression import ziplm
from terrazzo.compression.distill import DistillConfig
from terrazzo.compression.distill_workload import Distilled
from terrazzo.compression.shrink import stitch
from terrazzo.compression.statistics import collect, output_projections
from terrazzo.nn import Encoder, mosaicbert
from terrazzo.objectives import SupervisedConfig
from terrazzo.packed import Packed
from terrazzo.tasks import Example, TaskModel
from terrazzo.tasks.label import LabelTask

TASK = LabelTask.learn([Example(text="x", target=name) for name in "ab"])
LENGTH = 9


def documents(count: int, seed: int, wrong: float) -> Packed:
    """The class says whether most tokens are below 8, and is wrong for a share of the documents."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randint(16, (count, LENGTH), generator=draw)
    labels = ((rows < 8).sum(1) > LENGTH // 2) ^ (torch.rand(count, generator=draw) < wrong)
    return Packed(tokens_T=rows.flatten(), lengths=(LENGTH,) * count, labels_B=labels.long())


def trained(model: TaskModel, batch: Packed, objective, steps: int) -> TaskModel:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = objective(model, batch)
        (loss.sum / loss.weight).backward()
        optimizer.step()
    return model


def by_labels(model: TaskModel, batch: Packed):
    return model.task_loss(batch, SupervisedConfig())


@torch.inference_mode()
def accuracy(model: TaskModel, batch: Packed) -> float:
    return float((model(batch).argmax(1) == batch.labels_B).float().mean())


def test_what_was_cut_recovers_by_its_teacher_where_rows_with_mistakes_mislead_it() -> None:
    config = mosaicbert("tiny", 16, width=16, depth=1, num_heads=2, mlp_width=24, dropout=0.0, attention_dropout=0.0)
    dense = trained(TaskModel(Encoder(config), TASK).eval(), documents(256, 0, wrong=0.1), by_labels, 60)
    grams = collect(dense.encoder, [documents(64, 1, wrong=0.0)], output_projections(config)).grams
    cut, plan = copy.deepcopy(dense), {"heads.0": 1, "units.0": 1}
    levels = ziplm.database(dense.encoder, grams, {site: [size] for site, size in plan.items()})
    cut.encoder = stitch(dense.encoder, levels, plan)
    taught = Distilled(SupervisedConfig(), dense, DistillConfig()).loss
    judged, found = documents(500, 2, wrong=0.0), []
    for seed in range(3, 8):
        rows = documents(32, seed, wrong=0.3)
        found.append([accuracy(trained(copy.deepcopy(cut), rows, own, 20), judged) for own in (taught, by_labels)])
    by_teacher, by_rows = torch.tensor(found).T
    gain = by_teacher - by_rows
    assert gain.mean() > 3 * gain.std() / len(gain) ** 0.5 and gain.min() > 0, found
    assert by_teacher.min() > accuracy(cut, judged) + 0.05 and by_teacher.min() > accuracy(dense, judged) - 0.02, found
