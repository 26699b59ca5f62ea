"""Hessian spectra against a Hessian that is written out."""

import pytest
import torch

from terrazzo.compression.quantise.plan import weights_of
from terrazzo.compression.quantise.spectrum import (
    eager,
    hessian,
    layer_of,
    omega,
    sensitivity,
    task_loss,
    top_eigenvalue,
    traces,
)
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, bert
from terrazzo.packed import Packed
from terrazzo.tasks import Example, TaskModel
from terrazzo.tasks.label import LabelTask


def batch(seed, count=6):
    draw = torch.Generator().manual_seed(seed)
    some = [torch.randint(12, (n,), generator=draw).tolist() for n in torch.randint(2, 6, (count,), generator=draw)]
    return Packed.from_sequences(some, labels_B=torch.randint(2, (count,), generator=draw))


@pytest.fixture
def model():
    task = LabelTask.learn([Example(text="a", target="x"), Example(text="b", target="y")])
    config = bert(
        "base", vocab_size=12, width=4, depth=1, num_heads=2, mlp_width=5, max_len=8, init_std=0.5, dropout=0.3
    )
    made = TaskModel(Encoder(config), task).double()
    made.head.out[0].weight.data.normal_(std=2.0)
    return made


def written_out(loss, weights):
    """The Hessian by central differences of first derivatives, float64."""
    columns, eps = [], 1e-5
    for weight in weights:
        flat = weight.data.view(-1)
        for index in range(len(flat)):
            ends = []
            for sign in (1, -1):
                flat[index] += sign * eps
                ends.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss(), weights)]))
                flat[index] -= sign * eps
            columns.append((ends[0] - ends[1]) / (2 * eps))
    return torch.stack(columns)


def test_spectrum_is_that_of_the_hessian_written_out(model):
    some = batch(0)
    pull = torch.randn(len(some.lengths), 4, dtype=torch.float64)

    def loss():  # in float64 throughout, which the heads are not
        lengths = torch.tensor(some.lengths)
        pooled = torch.segment_reduce(model.encoder(some), "mean", lengths=lengths, unsafe=True)
        return (pooled * pull).sum(1).tanh().sum()

    names = [name for name in weights_of(model) if layer_of(name) == "blocks.0"]
    weights = [weights_of(model)[name] for name in names]
    assert names and sum(weight.numel() for weight in weights) <= 300
    with eager(model):
        whole = written_out(loss, weights)
        with hessian(loss, weights) as product:
            top = top_eigenvalue(product, weights, seed=0, tolerance=1e-4, steps=300)
            drawn, errors = traces(product, weights, seed=0, probes=60)
            vectors = [torch.randn_like(weight) for weight in weights]
            along = torch.cat([part.flatten() for part in product(vectors)])
    flat = torch.cat([vector.flatten() for vector in vectors])
    torch.testing.assert_close(along, whole @ flat, rtol=1e-5, atol=1e-6)
    eigenvalues = torch.linalg.eigvalsh((whole + whole.T) / 2)
    assert top == pytest.approx(float(eigenvalues[eigenvalues.abs().argmax()]), rel=0.01)
    diagonals = whole.diagonal().split([weight.numel() for weight in weights])
    for estimate, error, diagonal in zip(drawn, errors, diagonals, strict=True):
        assert abs(estimate - float(diagonal.sum())) <= 3 * error + 1e-9


def test_the_model_is_left_as_it_was(model):
    model.train()
    model.encoder.blocks[0].eval()
    model.encoder.requires_grad_(False)
    weights = [model.encoder.blocks[0].mlp.up.weight]
    with eager(model), hessian(lambda: task_loss(model, [batch(0)]), weights):
        assert not model.training and weights[0].requires_grad
    assert model.training and not model.encoder.blocks[0].training and model.encoder.backend is None
    assert not any(weight.requires_grad for weight in model.encoder.parameters())


def test_eigenvalues_keep_their_sign_and_a_second_start_finds_what_one_misses():
    weights = [torch.zeros(3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)]
    diagonal = [torch.tensor([1.0, -5, 2], dtype=torch.float64), torch.tensor([0.5, 0], dtype=torch.float64)]

    def product(vectors):
        return [d * v for d, v in zip(diagonal, vectors, strict=True)]

    assert top_eigenvalue(product, weights, seed=0, tolerance=1e-8) == pytest.approx(-5)
    exact, errors = traces(product, weights, seed=0, probes=3)
    assert exact == pytest.approx([-2, 0.5]) and errors == pytest.approx([0, 0])  # signs know a diagonal at once
    asked = []

    def blind_at_first(vectors):
        asked.append(1)
        return [torch.zeros_like(v) for v in vectors] if len(asked) == 1 else product(vectors)

    assert top_eigenvalue(blind_at_first, weights, seed=0, starts=1) == 0.0
    asked.clear()
    assert top_eigenvalue(blind_at_first, weights, seed=0, starts=2, tolerance=1e-8) == pytest.approx(-5)
    assert omega([-2.0, -4.0]) == 4.0


def test_sensitivity_is_omega_of_each_layer(model):
    shares = [[batch(seed)] for seed in range(3)]
    found = sensitivity(model, shares, seed=0)
    assert found.keys() == weights_of(model).keys()
    layers = {
        layer: {value for name, value in found.items() if layer_of(name) == layer} for layer in map(layer_of, found)
    }
    assert layers.keys() == {"embeddings", "blocks.0", "head"} and all(len(values) == 1 for values in layers.values())
    weights = [weight for name, weight in weights_of(model).items() if layer_of(name) == "head"]
    tops = []
    for share in shares:
        with eager(model):
            whole = written_out(lambda own=share: task_loss(model, own), weights)
        eigenvalues = torch.linalg.eigvalsh((whole + whole.T) / 2)
        tops.append(float(eigenvalues[eigenvalues.abs().argmax()]))
    assert found["head.out.0.weight"] == pytest.approx(omega(tops), rel=0.02)
    with pytest.raises(InputError, match="no share"):
        sensitivity(model, [])
