"""Cross-entropy of a linear decoder without ever holding all logits.

Shapes: M predictions, D width, V vocabulary, P padded vocabulary, C predictions of one chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: Bytes of logits held at a time: large enough for full-speed products, small next to the weights.
CHUNK_BYTES = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}


def linear_cross_entropy(
    hidden_MD: Tensor, weight_PD: Tensor, bias_P: Tensor | None, labels_M: Tensor, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of `hidden @ weight.T + bias` over the first `vocab_size` classes, and the correct guesses.

    Gradients are formed in the forward pass, chunk by chunk, so memory is one chunk of logits. Under autocast the
    products run in its dtype, the softmax in fp32.

    Returns:
        fp32 scalar sum of the losses (differentiable) and int64 scalar number of predictions whose label has the
        largest logit.
    """
    device = hidden_MD.device.type
    if torch.is_autocast_enabled(device):
        hidden_MD = hidden_MD.to(torch.get_autocast_dtype(device))
    result: tuple[Tensor, Tensor] = _LinearCrossEntropy.apply(hidden_MD, weight_PD, bias_P, labels_M, vocab_size)
    return result


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_MD: Tensor, weight_PD: Tensor, bias_P: Tensor | None, labels_M: Tensor, vocab_size: int
    ) -> tuple[Tensor, Tensor]:
        weight_VD = weight_PD[:vocab_size].to(hidden_MD.dtype)
        bias_V = None if bias_P is None else bias_P[:vocab_size].to(hidden_MD.dtype)
        needs_grad = any(ctx.needs_input_grad)
        grad_hidden_MD = torch.empty_like(hidden_MD) if needs_grad else None
        grad_weight_PD = torch.zeros_like(weight_PD, dtype=hidden_MD.dtype) if needs_grad else None
        grad_bias_P = torch.zeros_like(bias_P) if needs_grad and bias_P is not None else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden_MD.device)
        correct = torch.zeros((), dtype=torch.int64, device=hidden_MD.device)
        chunk = max(1, CHUNK_BYTES[hidden_MD.device.type] // (4 * vocab_size))
        for first in range(0, len(labels_M), chunk):
            rows = slice(first, first + chunk)
            hidden_CD, labels_C1 = hidden_MD[rows], labels_M[rows, None]
            logits_CV = hidden_CD @ weight_VD.T if bias_V is None else torch.addmm(bias_V, hidden_CD, weight_VD.T)
            logits_CV = logits_CV.float()
            top_C1, wanted_C1 = logits_CV.amax(1, keepdim=True), logits_CV.gather(1, labels_C1)
            probability_CV = logits_CV.softmax(dim=1)
            # The largest probability is exp(top - logsumexp): exact where the label's own probability underflows.
            loss += (top_C1 - probability_CV.amax(1, keepdim=True).log() - wanted_C1).sum()
            correct += (wanted_C1 == top_C1).sum()
            if grad_weight_PD is None or grad_hidden_MD is None:
                continue
            probability_CV.scatter_add_(1, labels_C1, torch.full_like(wanted_C1, -1.0))
            grad_CV = probability_CV.to(hidden_MD.dtype)
            torch.mm(grad_CV, weight_VD, out=grad_hidden_MD[rows])
            grad_weight_PD[:vocab_size].addmm_(grad_CV.T, hidden_CD)
            if grad_bias_P is not None:
                grad_bias_P[:vocab_size] += probability_CV.sum(0)
        ctx.save_for_backward(*(g for g in (grad_hidden_MD, grad_weight_PD, grad_bias_P) if g is not None))
        ctx.weight_dtype = weight_PD.dtype
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _grad_correct: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden_MD, grad_weight_PD, *rest = ctx.saved_tensors
        grad_bias_P = rest[0] * grad_loss if rest else None
        grad_weight = grad_weight_PD.mul_(grad_loss).to(ctx.weight_dtype)
        return grad_hidden_MD.mul_(grad_loss), grad_weight, grad_bias_P, None, None
