"""Eight-bit weights and activations, simulated in floats: how much a model loses by coarse scales.

Quantised are the weight of every matrix of the blocks, its input and its output, and the inputs of the blocks' norms;
embeddings and the head stay as they are. For int8 that runs, see `runtime.quantise`.

Shapes: T packed tokens, F features, K matrices that one layer stacks, O outputs of one, I inputs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from terrazzo.config import config
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, MaskedLM, StackedLinear
from terrazzo.packed import Packed


@config
class W8A8:
    """How coarse the scales are; the defaults are the paper's, the coarsest.

    Args:
        weights: one symmetric scale a matrix ("tensor"), or one for each of its rows ("channel").
        activations: one fixed asymmetric range a tensor, learned from calibration texts ("tensor"), or the range of
            each token as it comes ("token").
        momentum: how much of a fixed range each further calibration batch leaves as it was.

    Reference: Quantizable Transformers (arXiv 2306.12929), section 5: W8A8 with static min-max ranges.
    """

    weights: Literal["tensor", "channel"] = "tensor"
    activations: Literal["tensor", "token"] = "tensor"
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum must be in [0, 1), got {self.momentum}")


def round_weight(weight: Tensor, by: Literal["tensor", "channel"], stacked: int = 1) -> Tensor:
    """Weights `(K * O, I)` on 255 levels around 0, with one scale a matrix or one a row."""
    weight_KOI = weight.unflatten(0, (stacked, -1))
    largest = weight_KOI.abs().amax((1, 2) if by == "tensor" else 2, keepdim=True)
    scale = largest.clamp_min(torch.finfo(weight.dtype).tiny) / 127
    return (torch.round(weight_KOI / scale).clamp(-127, 127) * scale).flatten(0, 1)


def round_activation(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Values on 256 levels from `low` to `high`, which are widened to hold 0; what lies outside is clipped."""
    low, high = low.clamp_max(0), high.clamp_min(0)
    scale = ((high - low) / 255).clamp_min(torch.finfo(x.dtype).tiny)
    zero = torch.round(-low / scale)
    return ((torch.round(x / scale) + zero).clamp(0, 255) - zero) * scale


@torch.no_grad()
def simulate_w8a8(encoder: Encoder, calibration: Sequence[Packed], options: W8A8 | None = None) -> Encoder:
    """A copy that computes as if weights and activations were int8; fixed ranges come from `calibration` in floats.

    Raises:
        InputError: fixed ranges without a calibration batch.
    """
    options = options or W8A8()
    if options.activations == "tensor" and not calibration:
        raise InputError("calibration: fixed ranges need texts, some batches that are not those of the evaluation")
    rounded = copy.deepcopy(encoder).eval()
    points = _points(rounded, options)
    if options.activations == "tensor":
        for batch in calibration:
            rounded(batch.to(rounded.embeddings.tokens.weight.device))
    for module in rounded.blocks.modules():
        if isinstance(module, nn.Linear) and module.weight.numel():
            module.weight.copy_(round_weight(module.weight, options.weights, _stacked(module)))
    for point in points:
        point.calibrating = False
    return rounded


def pseudo_perplexities(
    model: MaskedLM, calibration: Sequence[Packed], evaluated: Sequence[Packed], kinds: Mapping[str, W8A8]
) -> dict[str, float]:
    """exp of the mean loss a masked token, of the model as it is ("fp32") and of each simulation.

    Raises:
        InputError: a calibration batch that is evaluated too.
    """
    for batch in calibration:
        if any(torch.equal(batch.tokens_T, other.tokens_T) for other in evaluated):
            raise InputError("calibration: a batch is evaluated too, which flatters fixed ranges: take other texts")
    found = {"fp32": _pseudo_perplexity(model, evaluated)}
    for name, options in kinds.items():
        rounded = copy.deepcopy(model)
        rounded.encoder = simulate_w8a8(model.encoder, calibration, options)
        found[name] = _pseudo_perplexity(rounded, evaluated)
    return found


@torch.inference_mode()
def _pseudo_perplexity(model: MaskedLM, batches: Sequence[Packed]) -> float:
    device, training = model.encoder.embeddings.tokens.weight.device, model.training
    model.eval()
    losses = [float(model.masked_loss(batch.to(device))[0]) for batch in batches]
    model.train(training)
    masked = sum(batch.masked_M.numel() for batch in batches if batch.masked_M is not None)
    return math.exp(min(sum(losses) / masked, 700.0))


class _Point:
    """One place where activations are rounded: while calibrating it only widens its ranges, one a stacked matrix."""

    def __init__(self, options: W8A8, stacked: int) -> None:
        self.options, self.stacked, self.calibrating = options, stacked, True
        self.range_2K1: Tensor | None = None

    def __call__(self, x_TF: Tensor) -> Tensor:
        x_TKF = x_TF.unflatten(-1, (self.stacked, -1))
        if self.options.activations == "token":
            return x_TF if self.calibrating else round_activation(x_TKF, *_extremes(x_TKF, (2,))).flatten(1)
        if self.calibrating:
            self._widen(x_TKF)
            return x_TF
        assert self.range_2K1 is not None, "no calibration text reached this place"
        return round_activation(x_TKF, *self.range_2K1).flatten(1)

    def _widen(self, x_TKF: Tensor) -> None:
        new = torch.stack([extreme[0] for extreme in _extremes(x_TKF, (0, 2))])
        keep = self.options.momentum
        self.range_2K1 = new if self.range_2K1 is None else keep * self.range_2K1 + (1 - keep) * new


def _extremes(x_TKF: Tensor, over: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    return x_TKF.amin(over, keepdim=True), x_TKF.amax(over, keepdim=True)


def _points(encoder: Encoder, options: W8A8) -> list[_Point]:
    """All places of an encoder's blocks, hooked in."""
    points = []
    for name, module in encoder.blocks.named_modules():
        linear = isinstance(module, nn.Linear)
        if linear and not module.get_parameter("weight").numel():
            continue
        if linear or (name.endswith("_norm") and not isinstance(module, nn.Identity)):
            points.append(_Point(options, 1))
            module.register_forward_pre_hook(_before(points[-1]))
        if linear:
            points.append(_Point(options, _stacked(module)))
            module.register_forward_hook(_after(points[-1]))
    return points


def _before(point: _Point) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    return lambda module, inputs: (point(inputs[0]), *inputs[1:])


def _after(point: _Point) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    return lambda module, inputs, output: point(output)


def _stacked(module: nn.Module) -> int:
    return module.stacked if isinstance(module, StackedLinear) else 1
