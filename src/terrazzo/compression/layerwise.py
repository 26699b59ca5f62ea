"""One matrix after the other by the inputs that it sees: SparseGPT and Wanda over a whole encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from terrazzo.compression.masks import single_matrices
from terrazzo.compression.sparsegpt import sparsegpt
from terrazzo.compression.unstructured import Pruned, Target
from terrazzo.compression.wanda import wanda
from terrazzo.errors import InputError
from terrazzo.nn import Encoder


@torch.no_grad()
def prune_layerwise(
    encoder: Encoder,
    grams: Mapping[str, Tensor],
    target: Target,
    method: Literal["sparsegpt", "wanda"] = "sparsegpt",
) -> Pruned:
    """Prune every matrix of the blocks in place, Q, K and V, or gate and value, each by itself.

    Args:
        grams: X X' of each weight's inputs by the weight's name (`statistics.collect`), of the dense encoder.
        target: the same share of every matrix, a share for each single matrix (`ratios.sparsities`), or a pattern.

    Returns:
        the masks and views of the new weights; `cost` is the sum of squared errors of all outputs.

    Raises:
        InputError: a weight without statistics, or what the methods refuse.
    """
    views = single_matrices(encoder)
    keep: dict[str, Tensor] = {}
    cost = 0.0
    for name, weight_OI in views.items():
        gram_II = _gram(grams, name, weight_OI)
        own = target[name] if isinstance(target, Mapping) else target
        before_OI = weight_OI.clone()
        if method == "sparsegpt":
            changed_OI, keep[name] = sparsegpt(weight_OI, gram_II, own)
            weight_OI.copy_(changed_OI)
        else:
            keep[name] = wanda(weight_OI, gram_II, own)
            weight_OI.masked_fill_(~keep[name], 0)
        cost += reconstruction_error(before_OI, weight_OI, gram_II)
    return Pruned(keep, views, cost)


def reconstruction_error(before_OI: Tensor, after_OI: Tensor, gram_II: Tensor) -> float:
    """||(after - before) X||^2 over the calibration inputs, in float64."""
    change_OI = (after_OI - before_OI).double()
    return float((change_OI @ gram_II.double() * change_OI).sum())


def _gram(grams: Mapping[str, Tensor], name: str, weight_OI: Tensor) -> Tensor:
    key = name.partition(":")[0]
    if key not in grams:
        raise InputError(f"{key}: there are no statistics of its inputs; collect those of every weight of the blocks")
    if grams[key].shape != (weight_OI.shape[1],) * 2:
        raise InputError(f"{key}: statistics {tuple(grams[key].shape)}, columns {weight_OI.shape[1]}: another model")
    return grams[key]
