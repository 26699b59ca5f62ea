"""Sites whose cut moves the answers cost more, whatever the errors of their layers say."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from terrazzo.compression import ziplm
from terrazzo.compression.distill import kl_sum
from terrazzo.compression.sensitivity import weighed_errors
from terrazzo.compression.shrink import stitch
from terrazzo.compression.statistics import collect, output_projections
from terrazzo.nn import Encoder, bert
from terrazzo.packed import Packed
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.model import TaskModel
from terrazzo.testing import TINY_MODEL


def made(scale: float):
    """A model, its database, batches, and what puts its head onto another encoder."""
    torch.manual_seed(0)
    config = bert("tiny", 100, **TINY_MODEL).replace(dropout=0.0, attention_dropout=0.0)
    model = TaskModel(Encoder(config), LabelTask(classes=("a", "b", "c"))).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for parameter in model.head.parameters():
        parameter.data *= scale
    draw = torch.Generator().manual_seed(1)
    batches = [Packed.from_sequences([torch.randint(100, (n,), generator=draw) for n in (5, 9, 12)]) for _ in range(2)]
    found = collect(model.encoder, batches, output_projections(config))

    def dressed(encoder):
        small = TaskModel(encoder, model.task)
        small.head = model.head
        return small.eval()

    return model, ziplm.database(model.encoder, found.grams), batches, dressed


def test_nothing_is_free_to_cut_where_answers_hardly_move() -> None:
    model, database, batches, dressed = made(1e-4)
    for levels in weighed_errors(model, database, batches, dressed).values():
        costs = [cost for _, cost in sorted(levels, reverse=True)]
        assert costs[0] == 0 and min(costs[1:]) > 0 and costs == sorted(costs)


def test_costs_are_what_the_probe_does_to_the_answers() -> None:
    model, database, batches, dressed = made(1.0)
    costs = weighed_errors(model, database, batches, dressed)
    for site, levels in database.levels.items():
        full = max(level.size for level in levels)
        probe = min(levels[1:], key=lambda level: abs(level.size - full / 4))
        cut = dressed(stitch(model.encoder, database, {site: probe.size}))
        with torch.inference_mode():
            moved = sum(float(kl_sum(cut(batch), model(batch))) for batch in batches)
        by_size = dict(costs[site])
        assert_close(by_size[probe.size], moved, rtol=1e-4, atol=1e-9)
        assert by_size[full] == 0 and [size for size, _ in costs[site]] == [level.size for level in levels]
        for level in levels:
            expected = moved * (level.relative_error / probe.relative_error) ** 2
            assert_close(by_size[level.size], expected, rtol=1e-4, atol=1e-9)
