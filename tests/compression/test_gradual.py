"""Pruning while a model trains: the schedule, exact zeros at the end, runs that are interrupted."""

import dataclasses
import shutil

import pytest
import torch

from terrazzo.compression.distill import DistillConfig
from terrazzo.compression.distill_workload import DistillWorkload
from terrazzo.compression.gradual import (
    PROGRESS,
    MagnitudePruner,
    ObertPruner,
    PruningWorkload,
    SparsitySchedule,
    cubic,
)
from terrazzo.compression.masks import single_matrices, sparsity, zeros_of
from terrazzo.compression.unstructured import ObertConfig
from terrazzo.errors import InputError
from terrazzo.objectives import SupervisedConfig
from terrazzo.optim import AdamWConfig, MuonConfig
from terrazzo.tasks.model import load_task_model
from terrazzo.testing import log_metrics, tiny_run
from terrazzo.train import Sampling, train
from terrazzo.train.metrics import read_metrics

DISTILLED = DistillConfig(labels=0.0, outputs=1.0)
SCHEDULE = SparsitySchedule(start=0.3, end=0.6, begin=0.2, finish=0.8, times=3)


def run_of(out, **fields):
    own = {"optimizer": AdamWConfig(lr=1e-2, weight_decay=0.1), "schedules": PROGRESS, **fields}
    common = {"objective": SupervisedConfig(), "sampling": Sampling(workers=0), "checkpoint_every": 5, "eval_every": 1}
    return tiny_run(out, out, 10, **common, **own)


def test_schedule_is_cubic_and_steps_at_its_times():
    schedule = SparsitySchedule(start=0.7, end=0.9, begin=2 / 30, finish=26 / 30, times=7)
    assert [round(level, 4) for level in schedule.levels] == [0.7, 0.7843, 0.8407, 0.875, 0.8926, 0.8991, 0.9]
    assert [schedule.done(epoch / 30) for epoch in (0, 1.9, 2, 5.9, 6, 10, 25.9, 26, 30)] == [0, 0, 1, 1, 2, 3, 6, 7, 7]
    assert SparsitySchedule(times=1, end=0.8).levels == (0.8,) and cubic(0.2, 0.8, 0.5) == pytest.approx(0.725)
    assert SparsitySchedule(begin=0.5, finish=0.5, times=3).done(0.5) == 3
    with pytest.raises(InputError, match=r"0\.9 to 0\.5"):
        SparsitySchedule(start=0.9, end=0.5)


@pytest.mark.parametrize(
    "optimizer", [AdamWConfig(lr=1e-2, weight_decay=0.1), MuonConfig(lr=1e-2)], ids=lambda o: o.kind
)
def test_a_run_rises_to_its_sparsity_and_ends_there(workload, tmp_path, optimizer):
    train(run_of(tmp_path, optimizer=optimizer), workload=PruningWorkload(workload, SCHEDULE), hooks=log_metrics)
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "heldout_loss" in line]
    levels = [0.0, *[0.3] * 3, *[SCHEDULE.levels[1]] * 3, *[0.6] * 3]
    assert [line["sparsity"] for line in lines] == pytest.approx(levels, abs=1e-4)
    encoder = load_task_model(tmp_path / "model").model.encoder
    total = sum(view.numel() for view in single_matrices(encoder).values())
    assert abs(sparsity(zeros_of(encoder)) - 0.6) <= 1 / total


@pytest.mark.parametrize("method", ["magnitude", "obert"])
def test_an_interrupted_run_ends_as_one_that_was_not(workload, tmp_path, method):
    options = ObertConfig(block=16, damp=1e-5)
    pruner = MagnitudePruner() if method == "magnitude" else ObertPruner(options, examples=6)
    pruning = PruningWorkload(workload, SCHEDULE, pruner)
    train(run_of(tmp_path / "a"), workload=pruning)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "model")
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "step-00000010")
    train(run_of(tmp_path / "b"), workload=pruning, resume=True)
    wanted, found = (load_task_model(tmp_path / name).model.state_dict() for name in "ab")
    assert all(torch.equal(tensor, found[name]) for name, tensor in wanted.items())
    encoder = load_task_model(tmp_path / "a").model.encoder
    assert sparsity(zeros_of(encoder)) == pytest.approx(0.6, abs=1e-3)


def test_without_a_schedule_zeros_stay_and_nothing_else_is_pruned(workload, tmp_path):
    train(run_of(tmp_path / "a"), workload=PruningWorkload(workload, SCHEDULE))
    model = load_task_model(tmp_path / "a" / "model").model
    zeros = zeros_of(model.encoder)
    again = PruningWorkload(dataclasses.replace(workload, initial=model))
    train(run_of(tmp_path / "b", schedules={}), workload=again)
    after = zeros_of(load_task_model(tmp_path / "b" / "model").model.encoder)
    assert all(torch.equal(mask, after[name]) for name, mask in zeros.items())


def test_stages_that_would_not_end_sparse_are_refused(workload, tmp_path):
    pruning = PruningWorkload(workload, SCHEDULE)
    with pytest.raises(InputError, match="schedules.objective.progress"):
        train(run_of(tmp_path, schedules={}), workload=pruning)
    with pytest.raises(InputError, match="keep_best"):
        train(run_of(tmp_path, keep_best=True), workload=pruning)
    assert not (tmp_path / "run.json").exists()


def test_a_student_that_is_its_teacher_is_pruned_by_the_labels(workload, tmp_path):
    train(run_of(tmp_path / "dense", schedules={}), workload=workload)
    dense = load_task_model(tmp_path / "dense" / "model").model
    distilled = DistillWorkload(inner=dataclasses.replace(workload, initial=dense), teacher=dense, options=DISTILLED)
    sizes = []

    class Watching(MagnitudePruner):
        def __call__(self, encoder, target, keep, gradients):
            names = list(single_matrices(encoder))
            sizes.append(max(float(one[name].abs().max()) for one in gradients(4)(names) for name in names))
            return super().__call__(encoder, target, keep, gradients)

    schedule = SparsitySchedule(start=0.6, end=0.6, begin=0.0, finish=0.0, times=1)
    train(run_of(tmp_path / "sparse"), workload=PruningWorkload(distilled, schedule, Watching()))
    assert len(sizes) == 1 and sizes[0] > 1e-4
    assert sparsity(zeros_of(load_task_model(tmp_path / "sparse" / "model").model.encoder)) == pytest.approx(
        0.6, abs=1e-3
    )
