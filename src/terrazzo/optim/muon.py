"""Muon: momentum with all singular values set near 1, for matrices; AdamW for everything else.

Shapes: K matrices of one shape, M rows, N columns, M <= N.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from terrazzo.config import config
from terrazzo.errors import InputError
from terrazzo.optim.adamw import AdamWConfig, adamw_step
from terrazzo.optim.base import Group, MultiTensorOptimizer, check_hyperparameters, groups_by_role
from terrazzo.optim.roles import stacks

AdjustLr = Literal["match_rms_adamw", "original"]

#: The quintic of Jordan et al., whose slope at 0 is as steep as it can be while values near 1 stay in about [0.7, 1.2].
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def newton_schulz(matrices_KMN: Tensor, *, steps: int = 5, dtype: torch.dtype, eps: float = 1e-7) -> Tensor:
    """The matrices with their singular values moved to about 1, in `dtype`; all K go through one batched product.

    Reference: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
    """
    a, b, c = COEFFICIENTS
    x_KMN = matrices_KMN.to(dtype)
    x_KMN = x_KMN / torch.linalg.vector_norm(x_KMN, dim=(-2, -1), keepdim=True).clamp(min=eps)
    if dtype == torch.float32 and x_KMN.shape[-1] >= 2 * x_KMN.shape[-2]:
        return _polar_KMM(x_KMN @ x_KMN.mT, steps) @ x_KMN
    for _ in range(steps):
        gram_KMM = x_KMN @ x_KMN.mT
        polynomial_KMM = torch.baddbmm(gram_KMM, gram_KMM, gram_KMM, beta=b, alpha=c)
        x_KMN = torch.baddbmm(x_KMN, polynomial_KMM, x_KMN, beta=a)
    return x_KMN


def _polar_KMM(gram_KMM: Tensor, steps: int) -> Tensor:
    """What the iterations multiply `x` with, found from `x @ x.mT` alone: 1.8 times fewer FLOPs where N = 4 M.

    It squares the singular values, which fp32 has the digits for and bf16 does not.
    """
    product_KMM = polynomial_KMM = _quintic(gram_KMM)
    for _ in range(steps - 1):
        gram_KMM = polynomial_KMM @ gram_KMM @ polynomial_KMM
        polynomial_KMM = _quintic(gram_KMM)
        product_KMM = polynomial_KMM @ product_KMM
    return product_KMM


def _quintic(gram_KMM: Tensor) -> Tensor:
    a, b, c = COEFFICIENTS
    result_KMM = torch.baddbmm(gram_KMM, gram_KMM, gram_KMM, beta=b, alpha=c)
    result_KMM.diagonal(dim1=-2, dim2=-1).add_(a)
    return result_KMM


def orthogonalize(tensors: list[Tensor], stacked: list[int], *, steps: int, dtype: torch.dtype) -> list[Tensor]:
    """Each tensor with the singular values of its matrices near 1.

    The rows of `tensors[i]` hold `stacked[i]` matrices, each of which counts alone; dimensions before the last two
    count matrices too. All matrices of one shape, whichever tensor they come from, run as one batch.
    """
    split = [_split(tensor, parts) for tensor, parts in zip(tensors, stacked, strict=True)]
    batches: dict[torch.Size, list[int]] = defaultdict(list)
    for index, matrices in enumerate(split):
        batches[_wide(matrices).shape[1:]].append(index)
    result = list(tensors)
    for members in batches.values():
        joined = torch.cat([_wide(split[index]) for index in members])
        done = newton_schulz(joined, steps=steps, dtype=dtype)
        for index, part_KMN in zip(members, torch.split(done, [len(split[index]) for index in members]), strict=True):
            upright = part_KMN if part_KMN.shape == split[index].shape else part_KMN.mT
            result[index] = upright.reshape(tensors[index].shape).to(tensors[index].dtype)
    return result


def muon_step(
    params: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    stacked: list[int],
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
    steps: int,
    adjust_lr: AdjustLr,
    dtype: torch.dtype,
) -> None:
    """One Muon step in place on all matrices.

    Sharded parameters are gathered, so that every rank orthogonalises whole matrices and keeps its own shard.

    Reference: Jordan et al. (2024); learning rate by shape: Liu et al. (arXiv 2502.16982), Eq. 4.
    """
    torch._foreach_lerp_(momenta, grads, 1 - momentum)
    updates = torch._foreach_lerp(grads, momenta, momentum) if nesterov else momenta
    whole = [u.full_tensor() if isinstance(u, DTensor) else u for u in updates]
    rates = [lr * lr_scale(u, parts, adjust_lr) for u, parts in zip(whole, stacked, strict=True)]
    whole = orthogonalize(whole, stacked, steps=steps, dtype=dtype)
    directions = [_sharded_like(p, update) for p, update in zip(params, whole, strict=True)]
    torch._foreach_mul_(directions, rates)
    torch._foreach_mul_(params, 1 - lr * weight_decay)
    torch._foreach_sub_(params, directions)


def lr_scale(tensor: Tensor, stacked: int, adjust_lr: AdjustLr) -> float:
    """What the learning rate is multiplied with for the shape of one of the `stacked` matrices of `tensor`.

    "match_rms_adamw" gives the update the root mean square 0.2 that AdamW's have, so that AdamW's lr and decay fit.
    """
    rows, columns = tensor.shape[-2] // stacked, tensor.shape[-1]
    if adjust_lr == "original":
        return math.sqrt(max(1.0, rows / columns))
    return 0.2 * math.sqrt(max(rows, columns))


def _split(tensor: Tensor, stacked: int) -> Tensor:
    rows, columns = tensor.shape[-2:]
    return tensor.reshape(-1, rows // stacked, columns)


def _wide(matrices: Tensor) -> Tensor:
    return matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices


def _sharded_like(param: Tensor, whole: Tensor) -> Tensor:
    if isinstance(param, DTensor):  # every rank holds the whole update: no data moves
        return distribute_tensor(whole, param.device_mesh, param.placements, src_data_rank=None)
    return whole


def fast_dtype(device: torch.device) -> torch.dtype:
    """bf16, or fp32 on a CPU that would only emulate bf16."""
    native = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


class Muon(MultiTensorOptimizer):
    """Muon over the groups whose `algorithm` is "muon", AdamW over those where it is "adamw".

    A Muon group has `lr`, `weight_decay`, `momentum`, `nesterov`, `steps`, `adjust_lr`, `dtype` and `stacked` (one int
    a parameter); an AdamW group has `lr`, `weight_decay`, `betas` and `eps`.
    """

    def __init__(self, groups: list[Group]) -> None:
        super().__init__(groups, {})

    def update(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
        if group["algorithm"] == "adamw":
            self._adamw(group, params, grads)
            return
        counts = {id(p): parts for p, parts in zip(group["params"], group["stacked"], strict=True)}
        dtype = fast_dtype(params[0].device) if group["dtype"] == "auto" else getattr(torch, group["dtype"])
        muon_step(
            params,
            grads,
            self.state_of(params, "momentum"),
            [counts[id(p)] for p in params],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            nesterov=group["nesterov"],
            steps=group["steps"],
            adjust_lr=group["adjust_lr"],
            dtype=dtype,
        )

    def _adamw(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
        for p in params:
            if "step" not in self.state[p]:
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
        adamw_step(
            params,
            grads,
            self.state_of(params, "exp_avg"),
            self.state_of(params, "exp_avg_sq"),
            [self.state[p]["step"] for p in params],
            lr=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )


@config
class MuonConfig:
    """Muon for the encoder's matrices; embeddings, norms, biases and the head go to AdamW in the same optimizer.

    Args:
        lr: of the matrices; `aux` has its own for the rest. The schedule scales both.
        weight_decay, decouple_lr: as in AdamWConfig, for the matrices.
        steps: Newton-Schulz iterations; each costs at most 4 M^2 N + 2 M^3 FLOPs for an M x N matrix, M <= N.
        adjust_lr: "match_rms_adamw" scales an M x N update by 0.2 sqrt(max(M, N)), "original" by sqrt(max(1, M / N)).
        dtype: of the iterations; "auto" is bf16 where the hardware multiplies it, else fp32.

    Reference: Jordan et al. (2024); Liu et al. (arXiv 2502.16982), section 2.2.
    """

    kind: Literal["muon"] = "muon"
    lr: float = 3e-3
    momentum: float = 0.95
    nesterov: bool = True
    weight_decay: float = 1e-5
    decouple_lr: bool = True
    steps: int = 5
    adjust_lr: AdjustLr = "match_rms_adamw"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    aux: AdamWConfig = AdamWConfig(lr=3e-3)

    def __post_init__(self) -> None:
        check_hyperparameters(self.kind, self.lr, self.weight_decay, self.momentum)
        if self.steps < 1:
            raise InputError(f"muon: steps must be at least 1, got {self.steps}")
        if self.aux.layer_decay != 1 or self.aux.rates:
            raise InputError("muon: aux.layer_decay and aux.rates have no effect here; use optimizer.kind=adamw")

    def build(self, model: nn.Module) -> Muon:
        """The optimizer of `model`'s trainable parameters."""
        return Muon([*self._muon_groups(model), *self._adamw_groups(model)])

    def _muon_groups(self, model: nn.Module) -> Iterator[Group]:
        counts = stacks(model)
        for group in groups_by_role(
            model, lr=self.lr, weight_decay=self.weight_decay, decouple_lr=self.decouple_lr, only=("matrix",)
        ):
            yield group | {
                "algorithm": "muon",
                "stacked": [counts[name] for name, _ in group["params"]],
                "momentum": self.momentum,
                "nesterov": self.nesterov,
                "steps": self.steps,
                "adjust_lr": self.adjust_lr,
                "dtype": self.dtype,
            }

    def _adamw_groups(self, model: nn.Module) -> Iterator[Group]:
        aux = self.aux
        for group in groups_by_role(
            model,
            lr=aux.lr,
            weight_decay=aux.weight_decay,
            decouple_lr=aux.decouple_lr,
            decay_norm_and_bias=aux.decay_norm_and_bias,
            only=("embedding", "norm", "bias", "head"),
        ):
            yield group | {"algorithm": "adamw", "betas": aux.betas, "eps": aux.eps}
