"""Several fine-tunings as one encoder whose matrices give, on each task's own inputs, nearly what that task's gave.

Shapes: O rows, I columns, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from terrazzo.compression.sites import matrices
from terrazzo.compression.statistics import Moments, Wanted, collect
from terrazzo.errors import InputError
from terrazzo.nn import Encoder
from terrazzo.packed import Packed

#: The factor of the products of different inputs, as the paper has it for language models.
SHRINK = 0.9
_TOKENS = "embeddings.tokens.weight"
#: What every row of the token table counts at least, so that tokens that no task has seen are averaged.
_LEAST = 1e-7


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a fine-tuning's matrices read on its own texts.

    Args:
        moments: of the inputs of every matrix, by its name; counts_V: how often each token comes.
    """

    moments: Mapping[str, Moments]
    counts_V: Tensor


def inputs_of(encoder: Encoder, batches: Sequence[Packed]) -> Inputs:
    """One pass over some hundreds of a task's texts, through its own fine-tuning.

    Raises:
        InputError: no texts.
    """
    names = frozenset(name for name, weight in matrices(encoder).items() if weight.numel())
    moments = collect(encoder, batches, Wanted(grams=names)).grams
    table_VD = encoder.embeddings.tokens.weight
    tokens_T = torch.cat([batch.tokens_T for batch in batches])
    return Inputs(moments=moments, counts_V=torch.bincount(tokens_T, minlength=len(table_VD)).double())


def regmean(
    states: Mapping[str, Mapping[str, Tensor]], inputs: Mapping[str, Inputs], weights: Mapping[str, float]
) -> dict[str, Tensor]:
    """One encoder's tensors from those of several.

    Each matrix is the least-squares solution over all tasks' inputs, a token's row the mean weighed by how often each
    task has it, everything else the mean; all by `weights`.

    Args:
        states: the tensors of every fine-tuning; inputs: what each of them reads; weights: how much each counts.

    Raises:
        InputError: a fine-tuning whose inputs are not given.

    Reference: RegMean (arXiv 2212.09849), Eq. 2 and section 3.3; the token table's counts are the same for inputs that
    are one token each.
    """
    if missing := [name for name in states if name not in inputs]:
        raise InputError(f"regmean: no inputs of {', '.join(missing)}: give some hundreds of its texts")
    merged: dict[str, Tensor] = {}
    first = next(iter(states.values()))
    known = next(iter(inputs.values())).moments
    total = sum(weights.values())
    for key, like in first.items():
        tensors = {name: state[key].double() for name, state in states.items()}
        if key in known:
            value = _solved(tensors, {name: inputs[name].moments[key] for name in states}, weights)
        elif key == _TOKENS:
            value = _counted(tensors, {name: inputs[name].counts_V for name in states}, weights)
        else:
            value = torch.stack([weights[name] * tensor for name, tensor in tensors.items()]).sum(0) / total
        merged[key] = value.to(like.dtype)
    return merged


def _solved(tensors: Mapping[str, Tensor], moments: Mapping[str, Moments], weights: Mapping[str, float]) -> Tensor:
    """The matrix of least sum over tasks of weight times ||(W - W_i) X_i||^2 a token, products shrunk."""
    left_II, right_IO = torch.zeros(()), torch.zeros(())
    for name, weight_OI in tensors.items():
        gram_II = moments[name].gram_FF * (weights[name] / moments[name].tokens)
        shrunk_II = SHRINK * gram_II + (1 - SHRINK) * torch.diag(gram_II.diag())
        left_II, right_IO = left_II + shrunk_II, right_IO + shrunk_II @ weight_OI.T
    # An input that is always zero may have any weight: the mean.
    dead_I = left_II.diag() == 0
    left_II[dead_I, dead_I] = 1
    right_IO[dead_I] = torch.stack(list(tensors.values())).mean(0).T[dead_I]
    return torch.linalg.solve(left_II, right_IO).T


def _counted(tensors: Mapping[str, Tensor], counts: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Each token's row, weighed by its share of each task's tokens."""
    shares = {name: (weights[name] * (count_V / count_V.sum() + _LEAST))[:, None] for name, count_V in counts.items()}
    total_V1 = torch.stack(list(shares.values())).sum(0)
    return torch.stack([shares[name] * table_VD for name, table_VD in tensors.items()]).sum(0) / total_V1
