"""Gradients one example at a time, and block Fisher matrices that are inverted exactly."""

import random

import pytest
import torch
from torch.testing import assert_close

from terrazzo.compression.fisher import (
    BlockFisher,
    BlockLayout,
    FisherOptions,
    block_fishers,
    direct_inverse,
    woodbury_update,
)
from terrazzo.compression.gradients import TaskGradients, examples_of
from terrazzo.compression.masks import single_matrices
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, mosaicbert
from terrazzo.objectives import SupervisedConfig
from terrazzo.tasks import Example, TaskModel
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.labelled import LabelledRows


class Given:
    """A stream of given gradients."""

    def __init__(self, gradients):
        self.gradients = gradients

    def __len__(self):
        return len(self.gradients)

    def __call__(self, names):
        yield from ({name: gradient[name] for name in names} for gradient in self.gradients)


def labelled(corpus, count=9):
    draw = random.Random(1)
    examples = [
        Example(text=draw.choice(["the cat purrs", "an engine hums at night"]) * n, target=draw.choice("ab"))
        for n in [1, 2] * count
    ][:count]
    task = LabelTask.learn([Example(text="x", target="a"), Example(text="x", target="b")])
    return task, LabelledRows.encode(task, examples, corpus.tokenizer, 32)


@pytest.fixture
def model(corpus):
    task, rows = labelled(corpus)
    config = mosaicbert("tiny", corpus.tokenizer.get_vocab_size(), width=16, depth=2, num_heads=2, mlp_width=24)
    return TaskModel(Encoder(config), task), rows


@pytest.mark.parametrize("dtype,bound", [(torch.float64, 1e-10), (torch.float32, 5e-5)])
@pytest.mark.parametrize("method", ["direct", "woodbury"])
def test_both_inverses_equal_that_of_the_summed_matrix(method, dtype, bound):
    damp, count = 1e-7, 1024
    grads_NKB = 0.01 * torch.randn(count, 3, 50, dtype=torch.float64) * torch.logspace(0, -2, 50, dtype=torch.float64)
    full = torch.einsum("nki,nkj->kij", grads_NKB, grads_NKB) / count + damp * torch.eye(50, dtype=torch.float64)
    wanted = torch.linalg.inv(full)
    given = grads_NKB.to(dtype).transpose(0, 1)
    if method == "direct":
        found = direct_inverse(given.mT @ given, count, damp)
    else:
        found = torch.eye(50, dtype=dtype).expand(3, 50, 50).clone() / damp
        for part in given.split(16, dim=1):
            woodbury_update(found, part, count)
    scale = wanted.diagonal(dim1=1, dim2=2).sqrt()
    assert ((found - wanted) / (scale[:, :, None] * scale[:, None, :])).abs().max() < bound


def test_few_examples_leave_a_damped_inverse_that_a_float32_sum_does_not():
    """Three gradients of size 100 and damping 1e-7: the sum is singular in float32, Woodbury never forms it."""
    weights, grads = {"w": torch.randn(1, 8)}, [{"w": 100 * torch.randn(1, 8)} for _ in range(3)]
    exact = sum(g["w"].double().T @ g["w"].double() for g in grads) / 3 + 1e-7 * torch.eye(8, dtype=torch.float64)
    found = block_fishers(weights, Given(grads), FisherOptions(block=8))["w"]
    assert_close(found.diagonal().double(), torch.linalg.inv(exact).diagonal()[None], rtol=1e-3, atol=0)
    with pytest.raises(InputError, match="damp 1e-07: too small"):
        block_fishers(weights, Given(grads), FisherOptions(block=8, method="direct"))


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("shape,block", [((3, 10), 4), ((2, 7), 50), ((5, 8), 8)])
def test_blocks_hold_neighbours_of_one_row(shape, block, across):
    layout = BlockLayout.of(shape, block, across_rows=across)
    places = torch.arange(1, shape[0] * shape[1] + 1).view(shape)
    cut = layout.cut(places)
    assert cut.shape == (layout.num_blocks, layout.width) and layout.width <= block
    assert torch.equal(layout.join(cut), places)
    rows = [{(int(p) - 1) // shape[1] for p in row if p} for row in cut]
    assert all(len(row) == 1 for row in rows) is (not across or shape == (5, 8))


def test_fisher_is_the_mean_of_single_examples_products():
    weights = {"w": torch.randn(2, 5, dtype=torch.float64)}
    grads = [{"w": torch.randn(2, 5, dtype=torch.float64)} for _ in range(7)]
    keep = {"w": torch.tensor([[1, 1, 0, 1, 1], [1, 1, 1, 1, 1]], dtype=torch.bool)}
    for method in ("direct", "woodbury"):
        options = FisherOptions(block=3, damp=1e-2, method=method, buffer=2)
        found = block_fishers(weights, Given(grads), options, keep)["w"]
        for row, first, last, block in ((0, 0, 3, 0), (0, 3, 5, 1), (1, 0, 3, 2)):
            part = torch.stack([g["w"][row, first:last] * keep["w"][row, first:last] for g in grads])
            wanted = torch.linalg.inv(part.T @ part / 7 + 1e-2 * torch.eye(last - first))
            assert_close(found.inverse_KBB[block][: last - first, : last - first], wanted)
        assert_close(found.diagonal()[0, 2].item(), 100.0)


def test_gradients_are_those_of_single_rows_without_dropout(model):
    model, rows = model
    model.encoder.blocks[0].dropout.p = 0.5
    model.encoder.blocks[0].mlp.up.weight.requires_grad_(False)
    model.train()
    examples, names = examples_of(rows, 5), ["blocks.0.attention.qkv.weight:1", "blocks.0.mlp.up.weight:0"]
    found = list(TaskGradients(model, examples)(names))
    assert len(found) == 5 and model.training and model.encoder.blocks[0].dropout.training
    assert not model.encoder.blocks[0].mlp.up.weight.requires_grad and model.head is not None
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval().requires_grad_(True)
    for example, gradient in zip(examples, found, strict=True):
        model.zero_grad()
        loss = model.task_loss(example, SupervisedConfig())
        (loss.sum / loss.weight).backward()
        assert_close(gradient[names[0]], model.encoder.blocks[0].attention.qkv.weight.grad[16:32])
        assert_close(gradient[names[1]], model.encoder.blocks[0].mlp.up.weight.grad[:24])


def test_matrices_are_views_of_the_weights(model):
    views = single_matrices(model[0].encoder)
    assert {name.partition(":")[0] for name in views} == {
        f"blocks.{i}.{part}.weight" for i in (0, 1) for part in ("attention.qkv", "attention.out", "mlp.up", "mlp.down")
    }
    views["blocks.1.attention.qkv.weight:2"].zero_()
    assert not model[0].encoder.blocks[1].attention.qkv.weight[32:].any()


def test_a_fisher_takes_the_memory_it_says():
    options, weight = FisherOptions(block=50, buffer=8), torch.zeros(4, 384)
    fisher = block_fishers({"w": weight}, Given([{"w": torch.randn(4, 384)}]), options)["w"]
    assert isinstance(fisher, BlockFisher)
    assert fisher.inverse_KBB.nbytes == 4 * weight.numel() * 48 == options.bytes(weight) - 4 * weight.numel() * 8
