"""StableAdamW: AdamW whose learning rate falls, tensor by tensor, when its second moment is out of date."""

from __future__ import annotations

import math
from dataclasses import field
from typing import Literal

import torch
from torch import Tensor, nn

from terrazzo.config import config
from terrazzo.optim.base import Group, MultiTensorOptimizer, check_hyperparameters, check_rates, groups_by_role
from terrazzo.optim.roles import Role


def stable_adamw_step(
    params: list[Tensor],
    grads: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    steps: list[int],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """One StableAdamW step in place on all tensors at once; the device is never waited for.

    Args:
        means, squares: running means of the gradient and of its square.
        steps: steps that each tensor has taken, this one included.

    Reference: Wortsman et al. (arXiv 2304.13013), Algorithm 2.
    """
    beta1s, beta2s = ([_debiased(beta, step) for step in steps] for beta in betas)
    torch._foreach_lerp_(means, grads, [1 - beta for beta in beta1s])
    torch._foreach_mul_(squares, beta2s)
    torch._foreach_addcmul_(squares, grads, grads, [1 - beta for beta in beta2s])

    roots = torch._foreach_sqrt(squares)
    ratios = torch._foreach_div(grads, torch._foreach_clamp_min(roots, eps))
    rates = torch._foreach_div(torch._foreach_norm(ratios), [math.sqrt(p.numel()) for p in params])  # RMS_t
    torch._foreach_clamp_min_(rates, 1.0)
    torch._foreach_reciprocal_(rates)
    torch._foreach_mul_(rates, lr)  # eta_t = lr / max(1, RMS_t)

    torch._foreach_add_(roots, eps)
    updates = torch._foreach_div(means, roots)
    torch._foreach_add_(updates, params, alpha=weight_decay)
    torch._foreach_mul_(updates, rates)
    torch._foreach_sub_(params, updates)


def _debiased(beta: float, step: int) -> float:
    """The beta whose running mean from zero needs no bias correction: 0 at the first step, then rising to `beta`."""
    return beta * (1 - beta ** (step - 1)) / (1 - beta**step)


class StableAdamW(MultiTensorOptimizer):
    """StableAdamW over parameter groups with `lr`, `betas`, `eps` and `weight_decay`."""

    def __init__(
        self,
        params: list[Group],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def update(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
        stable_adamw_step(
            params,
            grads,
            self.state_of(params, "exp_avg"),
            self.state_of(params, "exp_avg_sq"),
            self.count_steps(params),
            lr=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )


@config
class StableAdamWConfig:
    """StableAdamW: AdamW with update clipping, for runs without gradient clipping; ModernBERT's optimizer.

    The fields mean what they mean in AdamWConfig; where the rate is clipped, the decay is clipped with it.

    Reference: Wortsman et al. (arXiv 2304.13013), Algorithm 2; ModernBERT (arXiv 2412.13663), section 2.2.
    """

    kind: Literal["stable_adamw"] = "stable_adamw"
    lr: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 1e-5
    decouple_lr: bool = True
    decay_norm_and_bias: bool = False
    layer_decay: float = 1.0
    rates: dict[Role, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_hyperparameters(self.kind, self.lr, self.weight_decay, *self.betas)
        check_rates(self.kind, self.layer_decay, self.rates)

    def build(self, model: nn.Module) -> StableAdamW:
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
        return StableAdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps)
