"""What recipes of compression share: rows drawn, models judged, runs that go on, prices that are weights."""

from __future__ import annotations

import shutil

import pytest
import torch

from recipes.compressed import TINY, around, begin, drawn, fresh, points, trained, workload
from recipes.runner import Context
from recipes.ziplm.recipe import _weights
from terrazzo.compression import Masks, PruningWorkload, magnitude, single_matrices
from terrazzo.compression.masks import sparsity, zeros_of
from terrazzo.compression.sites import sites
from terrazzo.nn import Encoder, bert
from terrazzo.tasks.model import load_task_model
from terrazzo.tasks.predict import Predictor


@pytest.fixture
def start(tmp_path):
    return begin("smoke", "sst2", Context(work=tmp_path))


def test_rows_are_drawn_once_a_seed(start):
    rows = start.rows.train
    assert drawn(rows, 5, 1) == drawn(rows, 5, 1) != drawn(rows, 5, 2)
    assert drawn(rows, None) == drawn(rows, 99) == list(rows)


def test_points_are_shares_of_right_answers_times_a_hundred(start):
    like = fresh(start, start.rows.train, 0)
    said = [result.label for result in Predictor(like.model, like.tokenizer, 32).predict(start.rows.proof)]
    right = sum(label == row.target for label, row in zip(said, start.rows.proof, strict=True))
    assert points(like.model, like, start.rows.proof) == pytest.approx(100 * right / len(said))
    same = around(fresh(start, start.rows.train, 1).model.encoder, like.model)
    assert points(same, like, start.rows.proof) == points(like.model, like, start.rows.proof)


def test_a_sparse_training_keeps_its_zeros_is_not_repeated_and_begins_again_where_nothing_was_saved(start, tmp_path):
    like = fresh(start, start.rows.train, 0)
    Masks(like.model.encoder, magnitude(single_matrices(like.model.encoder), 0.5)).remove()
    options = start.options(tmp_path / "run", **{**TINY, "epochs": 1.0})
    work = PruningWorkload(workload(like, start.rows.train, start.rows.dev, like.model, options.batch_size))
    folder = trained(options, work, len(start.rows.train), lambda line: None)
    state = load_task_model(folder).model.encoder.state_dict()
    assert sparsity(zeros_of(load_task_model(folder).model.encoder)) == pytest.approx(0.5, abs=1e-3)
    assert not (tmp_path / "run" / "checkpoints").exists()
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert trained(options, work, len(start.rows.train), lambda line: None) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    shutil.rmtree(folder)  # as if it had been ended before its first checkpoint
    again = load_task_model(trained(options, work, len(start.rows.train), lambda line: None)).model.encoder.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in state.items())


@pytest.mark.parametrize("gated", [False, True])
def test_a_site_costs_what_it_has_of_weights(gated):
    config = bert("tiny", 50, width=32, depth=1, num_heads=2, mlp_width=48, gated=gated)
    total = sum(view.numel() for view in single_matrices(Encoder(config)).values())
    assert sum(site.size(config) * _weights(site, config) for site in sites(config)) == total
