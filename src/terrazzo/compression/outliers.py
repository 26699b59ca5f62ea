"""Outliers in an encoder's activations: what makes one scale for a whole tensor too coarse.

Measured at the output of every block's MLP and at the input of every block's norms, document by document over all of
its tokens, special ones included, and all channels; then the mean over documents.

Shapes: T packed tokens, B documents, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from terrazzo.compression.statistics import evaluating
from terrazzo.errors import InputError
from terrazzo.nn import Encoder
from terrazzo.packed import Packed


@dataclass
class Outliers:
    """What one pass found, by place: `blocks.0.mlp` is an output, `blocks.0.mlp_norm` an input.

    Args:
        inf_norm: mean over documents of the largest absolute value; kurtosis: mean over documents of `kurtosis_B`.
    """

    inf_norm: dict[str, float] = field(default_factory=dict)
    kurtosis: dict[str, float] = field(default_factory=dict)
    documents: int = 0

    @property
    def max_inf_norm(self) -> float:
        """The largest `inf_norm` of all places."""
        return max(self.inf_norm.values())

    @property
    def mean_kurtosis(self) -> float:
        """The mean `kurtosis` of all places."""
        return fmean(self.kurtosis.values())


def inf_norm_B(x_TD: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """The largest absolute value of each document, float64 `(B,)`."""
    return torch.stack([part.abs().max() for part in x_TD.double().split(lengths)])


def kurtosis_B(x_TD: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """E[(x - mean)^4] / E[(x - mean)^2]^2 of each document, float64 `(B,)`: 3 for a Gaussian, no bias correction.

    Reference: Quantizable Transformers (arXiv 2306.12929), section 5; Bondarenko et al. 2021 (arXiv 2109.12948).
    """
    found = []
    for part in x_TD.double().split(lengths):
        squares = (part - part.mean()).square()
        found.append(squares.square().mean() / squares.mean().square())
    return torch.stack(found)


def measure_outliers(encoder: Encoder, batches: Iterable[Packed]) -> Outliers:
    """Run `batches` through the encoder, without dropout and gradients, and measure all places in one pass.

    Raises:
        InputError: no batch at all, or values that are not finite.
    """
    sums: dict[str, tuple[float, float]] = {}
    found, device = Outliers(), encoder.embeddings.tokens.weight.device
    lengths: list[tuple[int, ...]] = [()]

    def meet(place: str, x_TD: Tensor) -> None:
        norms, tails = sums.get(place, (0.0, 0.0))
        norms += float(inf_norm_B(x_TD, lengths[0]).sum())
        sums[place] = norms, tails + float(kurtosis_B(x_TD, lengths[0]).sum())

    with evaluating(encoder), _watched(encoder, meet), torch.inference_mode():
        for batch in batches:
            lengths[0] = batch.lengths
            encoder(batch.to(device))
            found.documents += batch.num_documents
    if not found.documents:
        raise InputError("outliers: no text at all: give some hundreds of texts like those the model will see")
    for place, (norms, tails) in sums.items():
        found.inf_norm[place], found.kurtosis[place] = norms / found.documents, tails / found.documents
        if not torch.isfinite(torch.tensor(norms)):
            raise InputError(f"outliers: values at {place} are not finite: is the model damaged, or in fp16?")
    return found


@contextmanager
def _watched(encoder: Encoder, meet: Callable[[str, Tensor], None]) -> Iterator[None]:
    handles = []
    for layer, block in enumerate(encoder.blocks):
        parts = dict(block.named_children())
        handles.append(parts["mlp"].register_forward_hook(_output(meet, f"blocks.{layer}.mlp")))
        for name in ("attention_norm", "mlp_norm"):
            if not isinstance(parts[name], nn.Identity):
                handles.append(parts[name].register_forward_pre_hook(_input(meet, f"blocks.{layer}.{name}")))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _output(meet: Callable[[str, Tensor], None], place: str) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        meet(place, output)

    return hook


def _input(meet: Callable[[str, Tensor], None], place: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        meet(place, inputs[0])

    return hook
