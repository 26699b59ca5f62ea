"""One calibration pass: what the inputs of an encoder's matrices look like over a person's texts.

Shapes: T packed tokens, F columns of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from terrazzo.compression.sites import matrices, sites
from terrazzo.config import nearest
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, EncoderConfig
from terrazzo.packed import Packed

#: Columns that are multiplied at a time.
_STRIP = 512


@dataclass(frozen=True)
class Wanted:
    """What `collect` gathers: names of weights whose inputs' moments, and whose inputs' ranges, are asked for."""

    grams: frozenset[str] = frozenset()
    ranges: frozenset[str] = frozenset()

    def __or__(self, other: Wanted) -> Wanted:
        return Wanted(self.grams | other.grams, self.ranges | other.ranges)


class Moments:
    """Sums over the inputs x of one matrix, in float64: of x x', of x, and their number."""

    def __init__(self, width: int, device: torch.device | None = None) -> None:
        self.gram_FF = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.sum_F = torch.zeros(width, dtype=torch.float64, device=device)
        self.tokens = 0

    @classmethod
    def of(cls, inputs_TF: Tensor) -> Moments:
        """The moments of these inputs."""
        moments = cls(inputs_TF.shape[1], inputs_TF.device)
        moments.add(inputs_TF)
        return moments

    def add(self, inputs_TF: Tensor) -> None:
        """Count further inputs: products in fp32 (float64 inputs: in float64), merged in float64."""
        x_TF = inputs_TF if inputs_TF.dtype == torch.float64 else inputs_TF.float()
        for start in range(0, x_TF.shape[1], _STRIP):  # the products are symmetric: each strip from its diagonal on
            stop = start + _STRIP
            part = x_TF[:, start:stop].T @ x_TF[:, start:]
            self.gram_FF[start:stop, start:] += part
            self.gram_FF[stop:, start:stop] += part[:, _STRIP:].T
        self.sum_F += x_TF.sum(0, dtype=torch.float64)
        self.tokens += len(x_TF)

    @property
    def mean_F(self) -> Tensor:
        """The mean input."""
        return self.sum_F / self.tokens

    @property
    def centred_FF(self) -> Tensor:
        """The sum of (x - mean) (x - mean)'."""
        return self.gram_FF - torch.outer(self.sum_F, self.mean_F)


class Range:
    """The smallest and the largest value of each input of one matrix, fp32 `(F,)`."""

    def __init__(self, width: int, device: torch.device | None = None) -> None:
        self.low_F = torch.full((width,), torch.inf, device=device)
        self.high_F = torch.full((width,), -torch.inf, device=device)

    def add(self, inputs_TF: Tensor) -> None:
        """Widen by further inputs."""
        low_F, high_F = torch.aminmax(inputs_TF.float(), dim=0) if len(inputs_TF) else (self.low_F, self.high_F)
        torch.minimum(self.low_F, low_F, out=self.low_F)
        torch.maximum(self.high_F, high_F, out=self.high_F)


@dataclass
class Statistics:
    """What one pass gathered, by the names of weights."""

    grams: dict[str, Moments] = field(default_factory=dict)
    ranges: dict[str, Range] = field(default_factory=dict)
    tokens: int = 0


def collect(
    encoder: Encoder,
    batches: Iterable[Packed],
    wanted: Wanted,
    select: Callable[[Packed], Tensor | None] | None = None,
) -> Statistics:
    """Run `batches` through the encoder, without dropout and gradients, and gather what is wanted.

    Memory stays at one batch and the sums: for a matrix of F columns 8 F (F + 1) bytes. The encoder is left as it was.

    Args:
        select: the tokens of a batch whose output is used, for models that pool some alone; the last block's output
            projections and MLP then count those only. None counts all.

    Raises:
        InputError: a wanted weight that the encoder has not, no batch at all, or a model whose values are not finite.
    """
    modules = _modules(encoder, wanted)
    found = Statistics(
        {name: Moments(modules[name].in_features, modules[name].weight.device) for name in sorted(wanted.grams)},
        {name: Range(modules[name].in_features, modules[name].weight.device) for name in sorted(wanted.ranges)},
    )
    device = encoder.embeddings.tokens.weight.device
    with evaluating(encoder), _hooked(modules, found), torch.inference_mode():
        for batch in batches:
            placed = batch.to(device)
            encoder(placed, None if select is None else select(placed))
            found.tokens += batch.num_tokens
    _check(found)
    return found


def output_projections(config: EncoderConfig) -> Wanted:
    """The moments that pruning heads and units needs: of the inputs of every block's output projections."""
    return Wanted(grams=frozenset(site.weight for site in sites(config)))


def _modules(encoder: Encoder, wanted: Wanted) -> dict[str, nn.Linear]:
    known = matrices(encoder)
    modules: dict[str, nn.Linear] = {}
    for name in sorted(wanted.grams | wanted.ranges):
        if name not in known:
            raise InputError(f"statistics of {name!r}: the encoder has no such weight: {nearest(name, known)}")
        module = encoder.get_submodule(name.removesuffix(".weight"))
        assert isinstance(module, nn.Linear)
        modules[name] = module
    return modules


@contextmanager
def evaluating(encoder: Encoder) -> Iterator[None]:
    """The encoder without dropout inside, every module in its own mode again afterwards."""
    modes = {module: module.training for module in encoder.modules()}
    encoder.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _hooked(modules: dict[str, nn.Linear], found: Statistics) -> Iterator[None]:
    handles = []
    for name, module in modules.items():
        meters = [part[name] for part in (found.grams, found.ranges) if name in part]
        handles.append(module.register_forward_pre_hook(_feed(meters)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _feed(meters: list[Moments | Range]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        for meter in meters:
            meter.add(inputs[0])

    return hook


def _check(found: Statistics) -> None:
    if found.tokens == 0:
        raise InputError("calibration: no text at all: give some hundreds of texts like those the model will see")
    sums = {name: moments.gram_FF for name, moments in found.grams.items()}
    sums |= {name: extent.high_F - extent.low_F for name, extent in found.ranges.items()}
    for name, values in sums.items():
        if not torch.isfinite(values).all():
            raise InputError(f"calibration: the inputs of {name} are not finite: is the model damaged, or in fp16?")
