"""Which matrix gets how many bits: what each level costs, and the choice within a budget of bytes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from terrazzo.checkpoint.packing import PackedTensor
from terrazzo.compression.quantise.plan import BitPlan, Model, full_name, packed_bytes, payloads
from terrazzo.compression.solver import Unreachable, choose_levels
from terrazzo.errors import InputError
from terrazzo.packed import Packed

_BUCKETS = 50_000


@dataclass(frozen=True)
class Candidate:
    """A matrix at some bits.

    Args:
        bias_O: the bias that goes with it, where it moves.
        squared_error: of its entries; output_error: of its outputs on the calibration texts.
    """

    packed: PackedTensor
    bias_O: Tensor | None
    squared_error: float
    output_error: float


def choose_bits(
    model: Model,
    levels: Mapping[str, Sequence[int]],
    errors: Mapping[str, Sequence[float]],
    sensitivity: Mapping[str, float],
    budget: int,
    group: int,
    power: float = 1.0,
) -> BitPlan:
    """The bits of each matrix at least total cost, error times sensitivity, within `budget` bytes of weights.

    Args:
        levels: bits to choose from, by name; errors: of each of them.
        power: of error times sensitivity: 1 for independent errors, 0.5 for errors that add up before they are squared.

    Raises:
        InputError: a matrix without a sensitivity.
        Unreachable: the fewest bits do not fit; carries bytes.

    Reference: the perturbation Omega_i = Tr(H_i) ||Q(W_i) - W_i||^2 of HAWQ-V2 (arXiv 1911.03852), for Q-BERT's levels.
    """
    missing = [name for name in levels if name not in sensitivity]
    if missing:
        raise InputError(f"sensitivity: there is none of {missing[0]}; give one for every matrix")
    largest = BitPlan(bits={name: max(own) for name, own in levels.items()}, group=group)
    prices = {name: payloads(model, largest, tuple(own))[name] for name, own in levels.items()}
    beside = packed_bytes(model, largest) - sum(max(own) for own in prices.values())
    costs = [[(sensitivity[name] * error) ** power for error in errors[name]] for name in levels]
    try:
        chosen = choose_levels(costs, [prices[name] for name in levels], max(0, budget - beside), _BUCKETS)
    except Unreachable as error:
        raise Unreachable(budget, error.least + beside) from None
    return BitPlan(
        bits={name: own[level] for (name, own), level in zip(levels.items(), chosen, strict=True)}, group=group
    )


@torch.no_grad()
def measured_sensitivity(
    model: Model, candidates: Mapping[str, Candidate], batches: Sequence[Packed]
) -> dict[str, float]:
    """How far the model's outputs move with each matrix alone replaced, by that matrix's output error; squared.

    Args:
        candidates: one for every matrix; an error there has to show in the outputs.
    """
    probe = copy.deepcopy(model).eval()
    state = probe.state_dict()
    before = [probe(batch).float() for batch in batches]
    found: dict[str, float] = {}
    for name, candidate in candidates.items():
        full = full_name(model, name)
        replaced = {full: candidate.packed.values()}
        if candidate.bias_O is not None:
            replaced[full.replace(".weight", ".bias")] = candidate.bias_O
        kept = {key: state[key].clone() for key in replaced}
        for key, tensor in replaced.items():
            state[key].copy_(tensor)
        moved = _moved(probe, batches, before)
        for key, tensor in kept.items():
            state[key].copy_(tensor)
        found[name] = moved / candidate.output_error if candidate.output_error > 0 else 0.0
    return found


@torch.no_grad()
def outputs_moved(model: Model, other: Model, batches: Sequence[Packed]) -> float:
    """The squared distance between two models' outputs, summed, without dropout."""
    with evaluating(model, other):
        return _moved(other, batches, [model(batch).float() for batch in batches])


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Dropout off; afterwards every module is in the mode that it was in."""
    modes = {module: module.training for model in models for module in model.modules()}
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def first_tokens(batches: Sequence[Packed], tokens: int) -> list[Packed]:
    """The first batches, one at least, with no more than so many tokens together."""
    taken: list[Packed] = []
    for batch in batches:
        tokens -= batch.num_tokens
        if taken and tokens < 0:
            break
        taken.append(batch)
    return taken


def _moved(model: Model, batches: Sequence[Packed], before: Sequence[Tensor]) -> float:
    return sum(float((model(batch).float() - old).square().sum()) for batch, old in zip(batches, before, strict=True))
