"""How sharply a loss bends around a model's weights: the top eigenvalue and the trace of its Hessian.

The Hessian of a block of weights is never formed: products with vectors come from a second backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from terrazzo.compression.quantise.bits import evaluating
from terrazzo.compression.quantise.plan import weights_of
from terrazzo.errors import InputError
from terrazzo.objectives import SupervisedConfig
from terrazzo.packed import Packed
from terrazzo.tasks.model import TaskModel

#: Takes a vector, in the parts that the weights have, and gives the Hessian times it.
Product = Callable[[Sequence[Tensor]], list[Tensor]]


@contextmanager
def hessian(loss: Callable[[], Tensor], weights: Sequence[nn.Parameter]) -> Iterator[Product]:
    """Products with the Hessian of a scalar loss by `weights`, all as one block, at their present values.

    The loss must be twice differentiable (`task_loss` sees to it).

    Raises:
        InputError: a loss that is not finite.
    """
    frozen = [weight for weight in weights if not weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        with torch.enable_grad(), _TwiceDifferentiable():
            value = loss()
            if not value.isfinite():
                raise InputError(f"Hessian: the loss is {float(value)}; is the model damaged?")
            gradients = torch.autograd.grad(value, weights, create_graph=True, materialize_grads=True)
            yield lambda vectors: _product(gradients, weights, vectors)
    finally:
        for weight in frozen:
            weight.requires_grad_(False)


def _product(gradients: Sequence[Tensor], weights: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
    bent = [(gradient, vector) for gradient, vector in zip(gradients, vectors, strict=True) if gradient.requires_grad]
    if not bent:
        return [torch.zeros_like(weight) for weight in weights]
    outputs, along = zip(*bent, strict=True)
    return list(torch.autograd.grad(outputs, weights, along, retain_graph=True, materialize_grads=True))


def top_eigenvalue(
    product: Product,
    weights: Sequence[Tensor],
    *,
    seed: int,
    starts: int = 2,
    steps: int = 100,
    tolerance: float = 0.01,
) -> float:
    """The eigenvalue of the largest magnitude, with its sign: the largest that power iteration finds from any start.

    An iteration ends when the eigenvalue changes by less than `tolerance` of itself, twice in a row.

    Args:
        starts: random vectors to begin from: one alone can lie across the direction that is looked for.

    Reference: power iteration with Hessian-vector products, as Q-BERT (arXiv 1909.05840) uses it from one start.
    """
    generator = torch.Generator().manual_seed(seed)
    found = [_iterated(product, _normal(weights, generator), steps, tolerance) for _ in range(starts)]
    return max(found, key=abs)


def _iterated(product: Product, vectors: list[Tensor], steps: int, tolerance: float) -> float:
    value, settled = 0.0, 0
    for _ in range(steps):
        length = _dot(vectors, vectors) ** 0.5
        if length == 0:
            return 0.0
        vectors = [vector / length for vector in vectors]
        bent = product(vectors)
        before, value = value, _dot(vectors, bent)
        settled = settled + 1 if abs(value - before) <= tolerance * abs(value) else 0
        if settled == 2:
            break
        vectors = bent
    return value


def traces(
    product: Product, weights: Sequence[Tensor], *, seed: int, probes: int = 16
) -> tuple[list[float], list[float]]:
    """The trace of the Hessian's part of every weight, and the standard error of each.

    Reference: Hutchinson's estimator with random signs, as HAWQ-V2 (arXiv 1911.03852) uses it.
    """
    assert probes >= 2, probes
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(probes):
        signs = [torch.randint(2, w.shape, generator=generator).to(w).mul_(2).sub_(1) for w in weights]
        rows.append([float((s * h).sum(dtype=torch.float64)) for s, h in zip(signs, product(signs), strict=True)])
    drawn = torch.tensor(rows, dtype=torch.float64)
    return drawn.mean(0).tolist(), (drawn.std(0) / probes**0.5).tolist()


def omega(eigenvalues: Sequence[float]) -> float:
    """Q-BERT's sensitivity: |mean| + standard deviation of the top eigenvalues over shares of the data.

    Reference: Q-BERT (arXiv 1909.05840), its sensitivity metric for mixed precision.
    """
    return abs(fmean(eigenvalues)) + pstdev(eigenvalues)


def sensitivity(
    model: TaskModel,
    shares: Iterable[Sequence[Packed]],
    options: SupervisedConfig | None = None,
    *,
    seed: int = 0,
    starts: int = 2,
) -> dict[str, float]:
    """Omega of every matrix that can be packed: that of its layer, all of whose weights are one block.

    Args:
        shares: disjoint parts of the training data with labels, each as batches; 10 in the paper.

    Raises:
        InputError: no share, or a loss that is not finite.
    """
    layers: dict[str, list[str]] = {}
    for name in weights_of(model):
        layers.setdefault(layer_of(name), []).append(name)
    found: dict[str, list[float]] = {layer: [] for layer in layers}
    weights = weights_of(model)
    for batches in shares:
        for layer, names in layers.items():
            own = [weights[name] for name in names]
            with eager(model), hessian(partial(task_loss, model, batches, options), own) as product:
                found[layer].append(top_eigenvalue(product, own, seed=seed, starts=starts))
    if not found[next(iter(layers))]:
        raise InputError("sensitivity: there is no share of the data to measure on")
    return {name: omega(found[layer]) for layer, names in layers.items() for name in names}


def layer_of(name: str) -> str:
    """The layer of a matrix: `blocks.3`, `embeddings`, `head`."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "blocks" else parts[0]


def task_loss(model: TaskModel, batches: Sequence[Packed], options: SupervisedConfig | None = None) -> Tensor:
    """The mean of a task's loss over labelled batches."""
    losses = [model.task_loss(batch, options or SupervisedConfig()) for batch in batches]
    if not losses:
        raise InputError("Hessian: there are no labelled batches")
    return torch.stack([loss.sum for loss in losses]).sum() / sum(loss.weight for loss in losses)


@contextmanager
def eager(model: TaskModel) -> Iterator[None]:
    """Dropout off, and attention by operations that can be differentiated twice; afterwards all as it was."""
    backend, model.encoder.backend = model.encoder.backend, "reference"
    try:
        with evaluating(model):
            yield
    finally:
        model.encoder.backend = backend


class _TwiceDifferentiable(TorchFunctionMode):
    """Means over documents by operations with second derivatives, which PyTorch's segmented reduction lacks."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options: Mapping[str, Any] = kwargs or {}
        if func is not torch.segment_reduce:
            return func(*args, **options)
        assert args[1] == "mean", args[1]
        return torch.stack([part.mean(0) for part in args[0].split(options["lengths"].tolist())])


def _normal(weights: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    return [torch.randn(weight.shape, generator=generator).to(weight) for weight in weights]


def _dot(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    return sum(float((a * b).sum(dtype=torch.float64)) for a, b in zip(first, second, strict=True))
