"""An encoder's graph in int8, ranges taken from real texts, with parts returned to fp32 until it agrees with fp32.

Weights get one scale a channel, activations one a tensor. SmoothQuant moves the outliers of activations into the
weights first; NNCF does both.

Reference: Xiao et al. 2023, SmoothQuant (arXiv 2211.10438), Eq. 4; Jacob et al. 2018 (arXiv 1712.05877), Eq. 1.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from terrazzo.errors import InputError
from terrazzo.nn import EncoderConfig
from terrazzo.packed import Packed
from terrazzo.runtime.agreement import Agreement, Judge
from terrazzo.runtime.graph import graph_inputs
from terrazzo.runtime.machine import Machine
from terrazzo.runtime.openvino import OpenVinoRuntime, import_openvino
from terrazzo.runtime.signal_stack import own_signal_stack

if TYPE_CHECKING:
    import openvino

#: Least number of calibration texts: a third of them judges, the rest sets the ranges.
LEAST_TEXTS = 64
#: How much of the range of activations moves into the weights, SmoothQuant's alpha; MiniLM agreed most at 0.9.
ALPHA = 0.9
#: The quantised parts that may return to fp32 before int8 is no longer worth its name.
MOST_REVERTED = 0.5
#: Rounding these saves nothing.
_SMALL_TABLES = r".*embeddings\.(positions|token_types).*"
_MODULE = re.compile(r"__module\.(?P<name>[\w.]+)/")


@dataclass(frozen=True, kw_only=True)
class Target:
    """What int8 must keep: the mean cosine to fp32, and the share of a task's answers."""

    cosine: float = 0.995
    answers: float = 0.99


class Unreached(InputError):
    """int8 that stays further from fp32 than asked."""


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """An int8 graph.

    Args:
        reverted: parts that stayed fp32, the costliest first.
        frontier: the agreement with that many parts reverted, as measured on the way.
        half_range: whether weights keep to 7 bits.
    """

    model: openvino.Model
    agreement: Agreement
    reverted: tuple[str, ...]
    frontier: Mapping[int, Agreement]
    half_range: bool


def quantise(
    model: openvino.Model,
    config: EncoderConfig,
    calibration: Sequence[Packed],
    judge: Judge,
    ranker: Judge,
    *,
    machine: Machine,
    target: Target | None = None,
    log: Callable[[str], None] = print,
) -> Quantised:
    """An encoder's graph in int8 that agrees with fp32 as far as `target` says.

    Args:
        model: of `to_openvino`; it is left as it is.
        calibration: documents that set the ranges, each its own batch, so that no padding is seen.
        judge: measures agreement on other documents; ranker: on a few of those that set the ranges, to find the parts
            that cost most.
        machine: where it will run; without VNNI the weights keep to half of their range.

    Raises:
        InputError: nncf is not installed, or the target is missed with half of the parts in fp32; the message holds
            the agreement measured on the way.
    """
    target = target or Target()
    half_range = not machine.has_int8
    simulated = simulate(model, config, calibration, half_range)
    return control(simulated, config, judge, ranker, target, half_range=half_range, log=log)


def control(
    simulated: openvino.Model,
    config: EncoderConfig,
    judge: Judge,
    ranker: Judge,
    target: Target,
    *,
    half_range: bool = False,
    log: Callable[[str], None] = print,
) -> Quantised:
    """Return the parts of a simulated int8 graph that cost most agreement to fp32, until it reaches `target`.

    Parts are ranked by the agreement of each alone in int8; the fewest that suffice are found by doubling, then by
    bisection.

    Raises:
        Unreached: half of the parts in fp32 do not suffice.
    """

    def measured(parts: Iterable[str], by: Judge) -> Agreement:
        return by(OpenVinoRuntime(reverted(simulated, parts), config, "int8"))

    frontier = {0: measured((), judge)}
    order: list[str] = []
    if not frontier[0].reaches(target.cosine, target.answers):
        log(f"int8 throughout: {frontier[0]}; looking for the parts that cost most")
        parts = set(parts_of(simulated))
        alone = {part: measured(parts - {part}, ranker).mean for part in sorted(parts)}
        order = sorted(alone, key=alone.__getitem__)
    most = int(len(order) * MOST_REVERTED)

    def reaches(count: int) -> bool:
        if count not in frontier:
            frontier[count] = measured(order[:count], judge)
        return frontier[count].reaches(target.cosine, target.answers)

    count = fewest(reaches, most)
    if count is None:
        raise Unreached(_unreached(frontier, target, len(order)))
    model = reverted(simulated, order[:count])
    _store_in_int8(model)
    return Quantised(
        model=model,
        agreement=frontier[count],
        reverted=tuple(order[:count]),
        frontier=frontier,
        half_range=half_range,
    )


def simulate(
    model: openvino.Model, config: EncoderConfig, calibration: Sequence[Packed], half_range: bool
) -> openvino.Model:
    """The graph with every quantised value rounded, its weights still in fp32, so that parts can be returned.

    Args:
        half_range: weights keep to 7 bits, which the kernels of CPUs without VNNI need.
    """
    nncf = import_nncf()
    from nncf.openvino.quantization.backend_parameters import BackendParameters
    from nncf.quantization import advanced_parameters as advanced

    inputs = [graph_inputs(batch, config) for batch in calibration]
    settings = advanced.AdvancedQuantizationParameters(
        overflow_fix=advanced.OverflowFix.ENABLE if half_range else advanced.OverflowFix.DISABLE,
        smooth_quant_alphas=advanced.AdvancedSmoothQuantParameters(matmul=ALPHA),
        disable_bias_correction=True,  # it finds nothing to correct behind matrix products
        backend_params={BackendParameters.COMPRESS_WEIGHTS: False},
    )
    with own_signal_stack(), contextlib.redirect_stdout(io.StringIO()):  # its progress bars
        quantised: openvino.Model = nncf.quantize(
            model.clone(),
            nncf.Dataset(inputs),
            subset_size=len(inputs),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(patterns=[_SMALL_TABLES], validate=False),
            advanced_parameters=settings,
        )
    return quantised


def parts_of(simulated: openvino.Model) -> dict[str, list[tuple[Any, Any]]]:
    """The quantised parts by name, such as "blocks.0.mlp.down" and "blocks.0.attention.scores".

    Each holds pairs of an input that reads a rounded value and the output that has the value unrounded.
    """
    parts: dict[str, list[tuple[Any, Any]]] = {}
    for node in simulated.get_ordered_ops():
        if node.get_type_name() != "FakeQuantize":
            continue
        for reader in node.output(0).get_target_inputs():
            parts.setdefault(_part(node, reader.get_node()), []).append((reader, node.input_value(0)))
    return parts


def reverted(simulated: openvino.Model, names: Iterable[str]) -> openvino.Model:
    """A copy of a simulated graph with the named parts in fp32."""
    copy = simulated.clone()
    parts = parts_of(copy)
    for name in names:
        for reader, unrounded in parts[name]:
            reader.replace_source_output(unrounded)
    return copy


def fewest(reaches: Callable[[int], bool], most: int) -> int | None:
    """The least count from 0 to `most` that reaches a goal which more only helps; None where `most` does not."""
    if reaches(0):
        return 0
    low, high = 0, min(1, most)
    while not reaches(high):
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high


def import_nncf() -> Any:
    """The nncf package, quiet and without reports to its maker.

    Raises:
        InputError: nncf is not installed.
    """
    import_openvino()
    try:
        import nncf
    except ModuleNotFoundError:
        raise InputError("int8 for openvino needs a package: pip install 'terrazzo[export]'") from None
    nncf.set_log_level(logging.ERROR)
    return nncf


def _part(node: Any, reader: Any) -> str:
    """The part that a rounding belongs to: the product that reads it, or attention's scores behind a projection."""
    name = _module(reader)
    if reader.get_type_name() in ("MatMul", "Gather") and name:
        return name
    source = node
    while source.get_type_name() != "MatMul" and source.get_input_size():
        source = source.input_value(0).get_node()
    name = _module(source)
    return f"{name.rpartition('.')[0]}.scores" if name else str(node.get_friendly_name())


def _module(node: Any) -> str:
    """The module of the encoder that a node comes from; the three projections go by the name of the one they were."""
    found = _MODULE.search(node.get_friendly_name())
    return re.sub(r"^projections\.(\d+)\.[qkv]$", r"blocks.\1.attention.qkv", found["name"]) if found else ""


def _store_in_int8(model: openvino.Model) -> None:
    from openvino._offline_transformations import compress_quantize_weights_transformation

    compress_quantize_weights_transformation(model)


def _unreached(frontier: Mapping[int, Agreement], target: Target, parts: int) -> str:
    measured = "; ".join(
        f"{count} of {parts} parts in fp32: {agreement}" for count, agreement in sorted(frontier.items())
    )
    return (
        f"int8 does not reach a cosine of {target.cosine} and {target.answers:.0%} equal answers with half of its "
        f"parts in fp32 ({measured}): take --precision bf16 or fp32, or calibrate with texts like those to come"
    )
