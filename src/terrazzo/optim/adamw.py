"""AdamW, with weight decay that the learning rate does not scale: the MosaicBERT recipe."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from terrazzo.config import config
from terrazzo.optim.base import check_hyperparameters, check_rates, groups_by_role
from terrazzo.optim.roles import Role


def adamw_step(
    params: list[Tensor],
    grads: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    steps: list[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """One AdamW step in place, one fused kernel for all tensors.

    Args:
        means, squares: running means of the gradient and of its square.
        steps: 0-dim fp32 tensors on the parameters' device, raised by one.

    Reference: Loshchilov and Hutter (arXiv 1711.05101), Algorithm 2.
    """
    adamw(
        params,
        grads,
        means,
        squares,
        [],
        steps,
        fused=True,
        amsgrad=False,
        beta1=betas[0],
        beta2=betas[1],
        lr=lr,
        weight_decay=weight_decay,
        eps=eps,
        maximize=False,
    )


@config
class AdamWConfig:
    """AdamW; the defaults are MosaicBERT-Base's.

    Args:
        weight_decay: share of the weight that one step at full learning rate removes.
        decouple_lr: decay by weight_decay * lr_t / lr, which equals torch's AdamW with weight_decay / lr; False decays
            by weight_decay * lr_t, as torch does.
        decay_norm_and_bias: False exempts norms and biases; MosaicBERT exempts nothing.
        layer_decay: in fine-tuning, the rate of a block as a share of the one above it; the head and the last block
            have `lr`. The weights of every layer decay alike, unless `decouple_lr` is False.
        rates: multiples of `lr` by role: embedding, matrix, norm, bias, head.

    Reference: MosaicBERT (arXiv 2312.17482), appendix on training details; arXiv 1711.05101, Algorithm 2; layer_decay:
    Sun et al. (arXiv 1905.05583), layer-wise decreasing layer rate.
    """

    kind: Literal["adamw"] = "adamw"
    lr: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 1e-5
    decouple_lr: bool = True
    decay_norm_and_bias: bool = True
    layer_decay: float = 1.0
    rates: dict[Role, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_hyperparameters(self.kind, self.lr, self.weight_decay, *self.betas)
        check_rates(self.kind, self.layer_decay, self.rates)

    def build(self, model: nn.Module) -> torch.optim.AdamW:
        """The optimizer of `model`'s trainable parameters: torch's, fused."""
        groups = groups_by_role(
            model,
            lr=self.lr,
            weight_decay=self.weight_decay,
            decouple_lr=self.decouple_lr,
            decay_norm_and_bias=self.decay_norm_and_bias,
            layer_decay=self.layer_decay,
            rates=self.rates,
        )
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)
