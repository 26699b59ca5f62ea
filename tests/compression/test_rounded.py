"""Training at few bits: rounded in every pass, gradients straight through, a model on its grids at the end."""

import copy
import dataclasses
import shutil

import pytest
import torch

from terrazzo.compression.distill import DistillConfig
from terrazzo.compression.distill_workload import DistillWorkload
from terrazzo.compression.quantise import BitPlan, RoundedWorkload, Rounding, requantise, save_packed, uniform_plan
from terrazzo.compression.quantise.training import straight_through
from terrazzo.errors import InputError
from terrazzo.nn import Encoder
from terrazzo.objectives import SupervisedConfig
from terrazzo.optim import AdamWConfig
from terrazzo.tasks import TaskModel
from terrazzo.tasks.batches import collate
from terrazzo.tasks.model import load_task_model
from terrazzo.testing import TINY_MODEL, log_metrics, tiny_run
from terrazzo.train import Init, Sampling, train
from terrazzo.train.metrics import read_metrics


@pytest.fixture
def inner(workload):
    """The workload, which begins with a model."""
    config = Init(fields=TINY_MODEL).encoder_config(workload.tokenizer.get_vocab_size())
    return dataclasses.replace(workload, initial=TaskModel(Encoder(config), workload.task))


def run_of(out, steps=8):
    common = {"objective": SupervisedConfig(), "sampling": Sampling(workers=0), "checkpoint_every": 4, "eval_every": 1}
    return tiny_run(out, out, steps, optimizer=AdamWConfig(lr=3e-3), **common)


def test_gradients_pass_straight_through():
    weight = torch.randn(6, 10, requires_grad=True)
    rounded = straight_through(weight, 2, 5)
    pull = torch.randn(6, 10)
    (rounded * pull).sum().backward()
    assert torch.equal(weight.grad, pull)
    assert not torch.equal(rounded, weight) and len(rounded[0, :5].unique()) <= 4


def test_passes_see_rounded_weights_and_everything_else_the_ones_behind(inner):
    model, plan = inner.initial.eval(), uniform_plan(inner.initial, 2, group=16)
    batch = collate(inner.train.flat[:4])
    plain, names, state = model(batch), [n for n, _ in model.named_parameters()], list(model.state_dict())
    expected = requantise(model, plan)
    for name, parameter in model.named_parameters():  # requantise rounds biases and norms too
        if name not in expected.packed:
            parameter.data.copy_(expected.model.get_parameter(name))
    rounding = Rounding(model, plan)
    assert torch.equal(model(batch), expected.model(batch))
    assert names == [n for n, _ in model.named_parameters()] and state == list(model.state_dict())
    copied = copy.deepcopy(model)
    copied.head.out[0].weight.data.zero_()
    assert not torch.equal(copied(batch), model(batch)) and torch.equal(model(batch), expected.model(batch))
    with pytest.raises(AttributeError):
        model(None)
    assert all("weight" not in module.__dict__ for module in model.modules())
    rounding.remove()
    torch.testing.assert_close(model(batch), plain, rtol=1e-2, atol=1e-2)
    with pytest.raises(InputError, match="nothing"):
        Rounding(model, BitPlan(bits={"nothing": 2}))


@pytest.mark.parametrize("distilled", [False, True])
def test_a_run_learns_and_ends_on_its_grids(inner, distilled, tmp_path):
    plan = uniform_plan(inner.initial, 2, group=16)
    within = inner
    if distilled:
        teacher = copy.deepcopy(inner.initial)
        teacher.head.out[0].weight.data.mul_(50)
        within = DistillWorkload(inner=inner, teacher=teacher, options=DistillConfig(labels=1.0))
    before = {name: tensor.clone() for name, tensor in inner.initial.state_dict().items()}
    workload = RoundedWorkload(inner=within, plan=plan)
    train(run_of(tmp_path / "run", 8 if distilled else 30), workload=workload, hooks=log_metrics)
    loaded = load_task_model(tmp_path / "run" / "model")
    small = requantise(loaded.model, plan)
    state = loaded.model.state_dict()
    assert all(torch.equal(tensor.values(), state[name]) for name, tensor in small.packed.items())
    changed = [name for name, tensor in state.items() if name.startswith("encoder.blocks") and name in small.packed]
    rounded = requantise(inner.initial, plan).model.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in inner.initial.state_dict().items())
    assert any(not torch.equal(state[name], rounded[name]) for name in changed)
    if not distilled:
        losses = [
            line["heldout_loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "heldout_loss" in line
        ]
        assert losses[-1] < 0.85 * losses[0]
    folder = save_packed(tmp_path / "packed", small, tmp_path / "run" / "model" / "tokenizer.json", max_len=32)
    packed = load_task_model(folder).model.state_dict()
    assert all(torch.equal(packed[name], tensor) for name, tensor in small.model.state_dict().items())


def test_an_interrupted_run_ends_as_one_that_was_not(inner, tmp_path):
    workload = RoundedWorkload(inner=inner, plan=uniform_plan(inner.initial, 3, group=16))
    assert workload.fingerprint != RoundedWorkload(inner=inner, plan=uniform_plan(inner.initial, 2)).fingerprint
    train(run_of(tmp_path / "a"), workload=workload)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "model")
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "step-00000008")
    train(run_of(tmp_path / "b"), workload=workload, resume=True)
    first, second = (load_task_model(tmp_path / name / "model").model.state_dict() for name in "ab")
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
