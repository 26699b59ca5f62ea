"""Held-out loss on documents and masks that never change."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import nn

from terrazzo.packed import Packed
from terrazzo.train.distributed import Ranks


@torch.no_grad()
def evaluate(
    module: nn.Module, batches: list[Packed], ranks: Ranks, autocast: AbstractContextManager[None]
) -> dict[str, float]:
    """Mean loss and accuracy over the masked tokens of `batches`, which the ranks share out.

    `module` is the `StepModule` as it trains; every rank runs the same number of forward passes, which FSDP2 needs.
    """
    module.eval()
    total = torch.zeros((), dtype=torch.float64, device=ranks.device)
    correct, weight = torch.zeros_like(total), 0
    rounds = -(-len(batches) // ranks.world_size)
    with autocast:
        for turn in range(rounds):
            index = turn * ranks.world_size + ranks.rank
            batch = batches[min(index, len(batches) - 1)]
            loss, logs = module(batch.to(ranks.device))
            if index < len(batches) and batch.masked_M is not None:
                total += loss
                correct += logs["correct"]
                weight += batch.masked_M.numel()
    module.train()
    loss_sum, right, masked = ranks.sum(float(total), float(correct), weight)
    return {"heldout_loss": loss_sum / masked, "heldout_accuracy": right / masked, "heldout_masked": masked}
