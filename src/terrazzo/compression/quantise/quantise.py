"""A model of few bits: what its matrices become, the folder that holds it, and how large that is.

Shapes: O rows, I columns.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

from terrazzo.checkpoint import atomic_folder, write_model
from terrazzo.checkpoint.packing import PackedTensor
from terrazzo.compression.quantise.bits import Candidate, choose_bits, first_tokens, measured_sensitivity, outputs_moved
from terrazzo.compression.quantise.grids import Fit, nearest
from terrazzo.compression.quantise.plan import (
    LEVELS,
    BitPlan,
    Model,
    check_plan,
    full_name,
    packed_bytes,
    uniform_plan,
    weights_of,
)
from terrazzo.compression.quantise.rounding import compensated
from terrazzo.compression.sites import matrices
from terrazzo.compression.statistics import Moments, Wanted, collect
from terrazzo.config import config, to_dict
from terrazzo.errors import InputError
from terrazzo.nn import Encoder
from terrazzo.packed import Packed
from terrazzo.tasks.model import TaskModel, write_task_model

M = TypeVar("M", bound=Model)
#: Of what a level costs, see `choose_bits`.
_POWERS = (1.0, 0.75, 0.5)


@config
class QuantiseOptions:
    """How matrices are rounded.

    Args:
        levels: bits to choose from; heads have `head_bits`.
        group: neighbouring entries of a row that share a step and a lowest value; 0 is the whole row.
        fit: grids from the smallest to the largest entry ("range"), or of the least squared error.
        rounding: "inputs" makes up for errors by what the matrices' inputs are like and corrects biases, and needs
            calibration batches; "nearest" needs none.
        damp: of the inputs' second moments, see `compensated`.
        probe_tokens: calibration tokens that models are compared on when bits are chosen, at least a batch.
    """

    levels: tuple[int, ...] = LEVELS
    group: int = 128
    fit: Fit = "error"
    rounding: Literal["inputs", "nearest"] = "inputs"
    head_bits: int = 8
    damp: float = 0.01
    probe_tokens: int = 2048

    def __post_init__(self) -> None:
        if not self.levels or not all(1 <= bits <= 8 for bits in (*self.levels, self.head_bits)) or self.group < 0:
            raise InputError("levels and head_bits are bits from 1 to 8, group is 0 or more")


@dataclass(frozen=True)
class Quantised(Generic[M]):
    """A model whose matrices have few bits.

    Args:
        model: floats that are exactly what the packed folder loads as.
        plan: bits of every packed matrix.
        packed: the matrices by their names in `model`.
    """

    model: M
    plan: BitPlan
    packed: dict[str, PackedTensor]

    @property
    def bytes(self) -> int:
        """Bytes of the files of weights that `save_packed` writes."""
        return packed_bytes(self.model, self.plan)


def quantise(
    model: M,
    batches: Sequence[Packed] = (),
    *,
    bits: int | BitPlan | None = None,
    budget: int | None = None,
    options: QuantiseOptions | None = None,
    sensitivity: Mapping[str, float] | None = None,
) -> Quantised[M]:
    """A copy of `model` whose matrices have few bits an entry: `bits` of them, or what fits into `budget`.

    Biases and norms are rounded to fp16. The model itself is left as it is.

    Args:
        batches: calibration texts like those to come, some hundreds of documents, without labels.
        bits: of every matrix, or a plan by name.
        budget: bytes of the files of weights; the bits are then chosen matrix by matrix at least total cost, in a few
            ways, of which the one is taken whose outputs move least.
        sensitivity: what a squared error in each matrix costs, by the names of `weights_of` (`spectrum.sensitivity`);
            None measures it: each matrix alone is rounded, and the model's outputs on `batches` are compared.

    Raises:
        InputError: neither or both of bits and budget, no batches where they are needed, or an unknown matrix.
        Unreachable: even the fewest bits do not fit `budget`.
    """
    options = options or QuantiseOptions()
    if (bits is None) == (budget is None):
        raise InputError("quantise: give bits or a budget in bytes, one of the two")
    inputs = _inputs(model, batches, options)
    if bits is not None:
        plan = uniform_plan(model, bits, options.group, options.head_bits) if isinstance(bits, int) else bits
        check_plan(model, plan)
        chosen = {name: _candidate(model, name, own, plan.group, options, inputs) for name, own in plan.bits.items()}
        return _assembled(model, plan, chosen)
    assert budget is not None
    tables = _tables(model, options, inputs)
    plans = _plans(model, tables, batches, budget, options, sensitivity)
    made = [_assembled(model, plan, _at(tables, plan)) for plan in plans]
    if len(made) == 1 or not batches:
        return made[0]
    judging = first_tokens(batches, options.probe_tokens)
    return min(made, key=lambda one: outputs_moved(model, one.model, judging))


def requantise(model: M, plan: BitPlan) -> Quantised[M]:
    """A copy of a model by a plan, every group from its smallest to its largest value.

    Without loss where the model was trained at these bits (`training.RoundedWorkload`).

    Raises:
        InputError: a matrix that the model has not.
    """
    options = QuantiseOptions(group=plan.group, fit="range", rounding="nearest")
    return quantise(model, bits=plan, options=options)


def save_packed(
    path: str | Path,
    quantised: Quantised[Any],
    tokenizer_file: str | Path | None,
    provenance: Mapping[str, Any] | None = None,
    *,
    max_len: int | None = None,
) -> Path:
    """Write a model folder whose matrices are packed; it opens as any other, as floats.

    Args:
        max_len: tokens of a document in training, which a task folder keeps; encoders have none.

    Raises:
        InputError: as `save_model`.
    """
    with atomic_folder(path) as folder:
        write_packed(folder, quantised, tokenizer_file, provenance, max_len=max_len)
    return Path(path)


def write_packed(
    folder: Path,
    quantised: Quantised[Any],
    tokenizer_file: str | Path | None,
    provenance: Mapping[str, Any] | None = None,
    *,
    max_len: int | None = None,
) -> None:
    """The files of `save_packed` in an existing folder."""
    model, packed = quantised.model, quantised.packed
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
    }
    told = {**(provenance or {}), "quantised": to_dict(quantised.plan)}
    if isinstance(model, TaskModel):
        assert max_len is not None and tokenizer_file is not None, "a task folder has a tokenizer and a length"
        write_task_model(folder, model, tokenizer_file, told, state, max_len=max_len, packed=packed)
    else:
        write_model(folder, model, tokenizer_file, told, state, packed)


class _Inputs:
    """What is known of the inputs of a model's matrices: their moments, and how often each token comes."""

    def __init__(self, moments: Mapping[str, Moments], counts_V: Tensor | None) -> None:
        self.moments, self.counts_V = moments, counts_V


def _inputs(model: Model, batches: Sequence[Packed], options: QuantiseOptions) -> _Inputs:
    if options.rounding == "nearest":
        return _Inputs({}, None)
    encoder = model if isinstance(model, Encoder) else model.encoder
    names = frozenset(name for name, weight in matrices(encoder).items() if weight.numel())
    moments = collect(encoder, _needed(batches), Wanted(grams=names)).grams
    tokens_T = torch.cat([batch.tokens_T for batch in batches])
    return _Inputs(moments, torch.bincount(tokens_T, minlength=model.config.padded_vocab_size).double())


def _needed(batches: Sequence[Packed]) -> Sequence[Packed]:
    if not batches:
        raise InputError("quantise: this needs calibration batches: give some hundreds of texts like those to come")
    return batches


@torch.no_grad()
def _candidate(model: Model, name: str, bits: int, group: int, options: QuantiseOptions, inputs: _Inputs) -> Candidate:
    """A matrix at some bits, and the errors of it."""
    weight_OI = weights_of(model)[name].detach()
    moments = inputs.moments.get(name)
    if moments is None:
        packed = nearest(weight_OI, bits, group, options.fit)
        off_OI = (packed.values() - weight_OI).double()
        counted = name == "embeddings.tokens.weight" and inputs.counts_V is not None
        rows_O = off_OI.square().sum(1)
        output = (
            float((rows_O * inputs.counts_V).sum()) if counted and inputs.counts_V is not None else float(rows_O.sum())
        )
        return Candidate(packed, None, float(rows_O.sum()), output)
    bias_O = model.state_dict().get(full_name(model, name).replace(".weight", ".bias"))
    gram_II = moments.gram_FF if bias_O is None else moments.centred_FF
    packed = compensated(weight_OI, gram_II, bits, group, options.fit, options.damp)
    off_OI = (packed.values() - weight_OI).double()
    output = float((off_OI @ gram_II * off_OI).sum())
    moved_O = None if bias_O is None else (bias_O.double() - off_OI @ moments.mean_F).float()
    return Candidate(packed, moved_O, float(off_OI.square().sum()), output)


def _plans(
    model: Model,
    tables: Mapping[str, Sequence[Candidate]],
    batches: Sequence[Packed],
    budget: int,
    options: QuantiseOptions,
    sensitivity: Mapping[str, float] | None,
) -> list[BitPlan]:
    """Different choices of bits within a budget, at least one: costs add up as if errors were independent, or as if
    they were all alike, when they add up before they are squared."""
    if sensitivity is None:
        probes = {name: own[len(own) // 3] for name, own in tables.items()}
        sensitivity = measured_sensitivity(model, probes, first_tokens(_needed(batches), options.probe_tokens))
        errors = {name: [level.output_error for level in own] for name, own in tables.items()}
    else:
        errors = {name: [level.squared_error for level in own] for name, own in tables.items()}
    levels = {name: [level.packed.bits for level in own] for name, own in tables.items()}
    plans = [choose_bits(model, levels, errors, sensitivity, budget, options.group, power=power) for power in _POWERS]
    uniform = [uniform_plan(model, bits, options.group, options.head_bits) for bits in sorted(options.levels)]
    fitting = [plan for plan in uniform if packed_bytes(model, plan) <= budget]
    return list({tuple(plan.bits.items()): plan for plan in [*plans, *fitting[-1:]]}.values())


def _at(tables: Mapping[str, Sequence[Candidate]], plan: BitPlan) -> dict[str, Candidate]:
    return {name: next(one for one in tables[name] if one.packed.bits == bits) for name, bits in plan.bits.items()}


def _tables(model: Model, options: QuantiseOptions, inputs: _Inputs) -> dict[str, list[Candidate]]:
    """Every matrix at every level, fewest bits first."""
    levels = sorted(set(options.levels))
    return {
        name: [
            _candidate(model, name, bits, options.group, options, inputs)
            for bits in ([options.head_bits] if name.startswith("head.") else levels)
        ]
        for name in weights_of(model)
    }


@torch.no_grad()
def _assembled(model: M, plan: BitPlan, chosen: Mapping[str, Candidate]) -> Quantised[M]:
    small = copy.deepcopy(model)
    state = small.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())
        assert tensor.isfinite().all(), f"{name} is beyond fp16"
    packed: dict[str, PackedTensor] = {}
    for name, candidate in chosen.items():
        full = full_name(model, name)
        packed[full] = candidate.packed
        state[full].copy_(candidate.packed.values())
        if candidate.bias_O is not None:
            state[full.replace(".weight", ".bias")].copy_(candidate.bias_O.half())
    return Quantised(small, plan, packed)
