"""Losses of labelled tasks: pure functions, fp32, summed over rows.

Shapes: B rows, C classes. Everything that a batch of documents is to the pooled tasks, selected tokens are to a tagger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from terrazzo.config import nearest
from terrazzo.errors import InputError


def cross_entropy_sum(
    logits_BC: Tensor,
    labels_B: Tensor,
    weights_C: Tensor | None = None,
    gamma: float = 0.0,
    smoothing: float = 0.0,
    own_BC: Tensor | None = None,
) -> Tensor:
    """Summed cross-entropy of the classes `labels_B`, fp32 scalar.

    Args:
        weights_C: weight of each class; the sum is not divided by them.
        gamma: focal loss: each row counts (1 - p)^gamma, p the probability of its class; 0 is cross-entropy.
        smoothing: share of the target spread over all classes, or over a row's own ones.
        own_BC: bool, the classes that may be the row's answer; the softmax runs over those alone (`masked_softmax`).

    Reference: focal loss, arXiv 1708.02002, Equation 4 (without its alpha, which `weights_C` are).
    """
    logits_BC = logits_BC.float()
    if own_BC is None and gamma == 0:
        return F.cross_entropy(logits_BC, labels_B, weights_C, reduction="sum", label_smoothing=smoothing)
    log_p_BC = masked_log_softmax(logits_BC, own_BC)
    if own_BC is None:
        own_BC = torch.ones_like(log_p_BC, dtype=torch.bool)
    if weights_C is None:
        weights_C = log_p_BC.new_ones(log_p_BC.shape[1])
    target_BC = F.one_hot(labels_B, log_p_BC.shape[1]) * (1 - smoothing) + own_BC * smoothing / own_BC.sum(
        1, keepdim=True
    )
    loss_B = -(target_BC * weights_C * log_p_BC.masked_fill(~own_BC, 0)).sum(1)
    if gamma > 0:
        log_right_B = log_p_BC.gather(1, labels_B[:, None]).squeeze(1)
        loss_B = loss_B * focal_factor(log_right_B, gamma)
    return loss_B.sum()


def masked_softmax(logits_BC: Tensor, own_BC: Tensor | None) -> Tensor:
    """Probabilities over each row's own classes, exactly 0 elsewhere: softmax(z + log m), m 1 for own classes, else 0.

    Reference: arXiv 2111.03963, the masked softmax of a multi-domain model.
    """
    return masked_log_softmax(logits_BC, own_BC).exp()


def masked_log_softmax(logits_BC: Tensor, own_BC: Tensor | None) -> Tensor:
    """Logarithms of `masked_softmax`, fp32; minus infinity outside a row's own classes."""
    logits_BC = logits_BC.float()
    return (logits_BC if own_BC is None else logits_BC.masked_fill(~own_BC, -torch.inf)).log_softmax(dim=1)


def focal_factor(log_p: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma from log p, with a gradient that stays finite where p rounds to 1."""
    return (-torch.expm1(log_p)).clamp_min(torch.finfo(torch.float32).tiny) ** gamma


def binary_cross_entropy_sum(
    logits_BC: Tensor,
    targets_BC: Tensor,
    positive_weights_C: Tensor | None = None,
    gamma: float = 0.0,
    smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of C yes-or-no answers a row, the mean over classes, summed over rows; fp32 scalar.

    Args:
        targets_BC: 1 where the class is an answer, else 0.
        positive_weights_C: weight of a yes; a no weighs 1.
        gamma: focal loss, as in `cross_entropy_sum`.
        smoothing: share of the target that goes to an even guess.

    Reference: arXiv 1708.02002, Equation 4.
    """
    logits_BC, targets_BC = logits_BC.float(), targets_BC.float()
    smooth_BC = targets_BC * (1 - smoothing) + smoothing / 2
    loss_BC = F.binary_cross_entropy_with_logits(logits_BC, smooth_BC, pos_weight=positive_weights_C, reduction="none")
    if gamma > 0:
        log_right_BC = F.logsigmoid(torch.where(targets_BC > 0.5, logits_BC, -logits_BC))
        loss_BC = loss_BC * focal_factor(log_right_BC, gamma)
    return loss_BC.mean(1).sum()


def squared_error_sum(values_B: Tensor, targets_B: Tensor) -> Tensor:
    """Squared error summed over rows, fp32 scalar."""
    return F.mse_loss(values_B.float(), targets_B.float(), reduction="sum")


def span_cross_entropy_sum(scores_T2: Tensor, lengths: tuple[int, ...], spans_B2: Tensor) -> Tensor:
    """Cross-entropy of first and last token over each document's own tokens, their mean, summed over documents.

    Args:
        scores_T2: score of every packed token to be the first, and the last, of the span.
        lengths: tokens of each document.
        spans_B2: int64 first and last position within the document.

    Reference: BERT, arXiv 1810.04805, section 4.2.
    """
    lengths_B = torch.tensor(lengths, device=scores_T2.device)
    starts_B = lengths_B.cumsum(0) - lengths_B
    document_T = torch.repeat_interleave(lengths_B, output_size=scores_T2.shape[0])
    scores_T2 = scores_T2.float()
    top_B2 = torch.segment_reduce(scores_T2.detach(), "max", lengths=lengths_B, unsafe=True)
    shifted_T2 = scores_T2 - top_B2.index_select(0, document_T)
    sums_B2 = shifted_T2.new_zeros(len(lengths), 2).index_add(0, document_T, shifted_T2.exp())
    right_B2 = shifted_T2.gather(0, starts_B[:, None] + spans_B2)
    return (sums_B2.log() - right_B2).sum() / 2


def class_weights(
    wanted: Literal["balanced"] | Mapping[str, float] | None, classes: Sequence[str], counts: Sequence[int]
) -> list[float] | None:
    """A weight for each class, such that their mean over the training rows is 1; None where rows count alike.

    "balanced" weighs a class by n / (C n_c); a mapping weighs those that it names, 1 for the others.

    Args:
        counts: training rows of each class.

    Raises:
        InputError: a class that is not one, or weights that are negative or all zero.
    """
    if wanted is None:
        return None
    if wanted == "balanced":
        raw = [1 / max(count, 1) for count in counts]
    else:
        check_weights(wanted, classes)
        raw = [wanted.get(name, 1.0) for name in classes]
    total = sum(count * weight for count, weight in zip(counts, raw, strict=True))
    if total <= 0:
        raise InputError(
            f"class_weights {wanted!r}: every training row would weigh nothing: give a class that they have a weight"
        )
    return [weight * sum(counts) / total for weight in raw]


def positive_weights(
    wanted: Literal["balanced"] | Mapping[str, float] | None, classes: Sequence[str], counts: Sequence[int], rows: int
) -> list[float] | None:
    """Weight of a yes for each of several classes: "balanced" makes all its yeses weigh as much as its noes.

    Raises:
        InputError: a class that is not one, or a negative weight.
    """
    if wanted is None:
        return None
    if wanted == "balanced":
        return [max(rows - count, 1) / max(count, 1) for count in counts]
    check_weights(wanted, classes)
    return [wanted.get(name, 1.0) for name in classes]


def weights_like(outputs: Tensor, weights: Sequence[float] | None) -> Tensor | None:
    """Class weights as fp32 on the device of `outputs`; None stays None."""
    return None if weights is None else torch.tensor(weights, dtype=torch.float32, device=outputs.device)


def check_weights(wanted: Mapping[str, float], classes: Sequence[str]) -> None:
    """Raise InputError for a weight of an unknown class or below zero."""
    for name, weight in wanted.items():
        if name not in classes:
            raise InputError(f"class_weights: {name!r} is not a class: {nearest(name, classes)}")
        if not weight >= 0:
            raise InputError(f"class_weights: the weight of {name!r} is {weight}, it must not be negative")
