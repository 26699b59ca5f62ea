"""Lion: the sign of an interpolated momentum; one state tensor where AdamW has two."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

import torch
from torch import Tensor, nn

from terrazzo.config import config
from terrazzo.optim.base import Group, MultiTensorOptimizer, check_hyperparameters, check_rates, groups_by_role
from terrazzo.optim.roles import Role


def lion_step(
    params: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> None:
    """One Lion step in place on all tensors at once.

    Reference: Chen et al. (arXiv 2302.06675), Algorithm 2.
    """
    updates = torch._foreach_lerp(momenta, grads, 1 - betas[0])
    torch._foreach_sign_(updates)
    torch._foreach_mul_(params, 1 - lr * weight_decay)
    torch._foreach_add_(params, updates, alpha=-lr)
    torch._foreach_lerp_(momenta, grads, 1 - betas[1])


class Lion(MultiTensorOptimizer):
    """Lion over parameter groups with `lr`, `betas` and `weight_decay`."""

    def __init__(
        self, params: list[Group], lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def update(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
        momenta = self.state_of(params, "momentum")
        lion_step(params, grads, momenta, lr=group["lr"], betas=group["betas"], weight_decay=group["weight_decay"])


@config
class LionConfig:
    """Lion; every coordinate moves by `lr`, so it wants an lr 3 to 10 times below AdamW's.

    Args:
        betas: (0.9, 0.99) is the paper's default; for language models it uses (0.95, 0.98).
        weight_decay: share of the weight that one step at full learning rate removes (see AdamWConfig). The paper
            raises lambda by the factor by which it lowers lr, which leaves this product as it is for AdamW.
        layer_decay, rates: as in AdamWConfig.

    Reference: Chen et al. (arXiv 2302.06675), Algorithm 2 and section 5.
    """

    kind: Literal["lion"] = "lion"
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-5
    decouple_lr: bool = True
    decay_norm_and_bias: bool = True
    layer_decay: float = 1.0
    rates: dict[Role, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_hyperparameters(self.kind, self.lr, self.weight_decay, *self.betas)
        check_rates(self.kind, self.layer_decay, self.rates)

    def build(self, model: nn.Module) -> Lion:
        """The optimizer of `model`'s trainable parameters."""
        groups = groups_by_role(
            model,
            lr=self.lr,
            weight_decay=self.weight_decay,
            decouple_lr=self.decouple_lr,
            decay_norm_and_bias=self.decay_norm_and_bias,
            layer_decay=self.layer_decay,
            rates=self.rates,
        )
        return Lion(groups, lr=self.lr, betas=self.betas)
