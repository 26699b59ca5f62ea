"""What the optimizers share: parameter groups by role, multi-tensor stepping, and their memory."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from terrazzo.config import nearest
from terrazzo.errors import InputError
from terrazzo.optim.roles import ROLES, Role, layers_above, roles

Group = dict[str, Any]


def groups_by_role(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    decouple_lr: bool = True,
    decay_norm_and_bias: bool = True,
    layer_decay: float = 1.0,
    rates: Mapping[Role, float] | None = None,
    only: tuple[Role, ...] = ROLES,
) -> list[Group]:
    """One parameter group for each role and learning rate that trainable parameters have.

    A group has `name`, `role`, `lr`, `base_lr` and `weight_decay`. Its rate is lr * rates[role] * layer_decay**n for
    parameters with n layers of the encoder above them: block i of L has L - 1 - i, the embeddings L, the head none.
    With `layer_decay` 1 there is one group a role.

    Every optimizer here multiplies weights by `1 - group["lr"] * group["weight_decay"]`. With `decouple_lr` the group
    holds `weight_decay / base_lr`, so that the product is weight_decay * lr_t / base_lr: the schedule scales the decay
    and the choice of rates does not.

    Reference: Sun et al. (arXiv 1905.05583), layer-wise decreasing layer rate. ELECTRA's code (google-research/electra,
    model/optimization.py) multiplies by layer_decay**2 more below its head.
    """
    found: dict[tuple[Role, int], list[tuple[str, nn.Parameter]]] = {}
    parameters, above = dict(model.named_parameters()), layers_above(model)
    for name, role in roles(model).items():
        if parameters[name].requires_grad:
            key = role, above[name] if layer_decay != 1 else 0
            found.setdefault(key, []).append((name, parameters[name]))
    groups = []
    for role, layers in sorted((key for key in found if key[0] in only), key=lambda key: (only.index(key[0]), key[1])):
        rate = lr * (rates or {}).get(role, 1.0) * layer_decay**layers
        decay = weight_decay / rate if decouple_lr else weight_decay
        groups.append(
            {
                "params": found[role, layers],
                "name": role if layer_decay == 1 else f"{role}-{layers}",
                "role": role,
                "lr": rate,
                "base_lr": rate,
                "weight_decay": decay if decay_norm_and_bias or role not in ("norm", "bias") else 0.0,
            }
        )
    return groups


class MultiTensorOptimizer(torch.optim.Optimizer):
    """An optimizer that updates a whole group at once: a subclass writes `update` and nothing else.

    A parameter without gradient keeps its weights and its state; one without elements has none.
    """

    @abstractmethod
    def update(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
        """Move `params` in place, reading hyperparameters from `group` and state through `state_of`."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; `closure`, if given, recomputes the loss first.

        Raises:
            ValueError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None and p.numel()]
            if any(p.grad.is_sparse for p in params):
                raise ValueError(f"group {group.get('name')!r} has sparse gradients: use nn.Embedding(sparse=False)")
            if params:
                self.update(group, params, [p.grad for p in params])
        return loss

    def state_of(self, params: list[Tensor], name: str) -> list[Tensor]:
        """The state tensor `name` of each parameter, zeros at first."""
        for p in params:
            if name not in self.state[p]:
                self.state[p][name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return [self.state[p][name] for p in params]

    def count_steps(self, params: list[Tensor]) -> list[int]:
        """How many steps each parameter has taken, this one included; counted on the host."""
        for p in params:
            self.state[p]["step"] = self.state[p].get("step", 0) + 1
        return [self.state[p]["step"] for p in params]


def optimizer_state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes that the state tensors of `optimizer` hold on this rank (zero before its first step)."""
    tensors = (value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor))
    return sum((t.to_local() if isinstance(t, DTensor) else t).nbytes for t in tensors)


def check_hyperparameters(kind: str, lr: float, weight_decay: float, *betas: float) -> None:
    """Refuse a learning rate that is not positive, a negative weight decay and betas outside [0, 1).

    Raises:
        InputError: naming the optimizer, the field and its value.
    """
    if not lr > 0:
        raise InputError(f"{kind}: lr must be positive, got {lr}")
    if not weight_decay >= 0:
        raise InputError(f"{kind}: weight_decay must not be negative, got {weight_decay}")
    for beta in betas:
        if not 0 <= beta < 1:
            raise InputError(f"{kind}: betas and momentum lie in [0, 1), got {beta}")


def check_rates(kind: str, layer_decay: float, rates: Mapping[Role, float]) -> None:
    """Refuse a layer decay outside (0, 1], a role that there is not, and a rate that is not positive.

    Raises:
        InputError: naming the optimizer, the field and its value.
    """
    if not 0 < layer_decay <= 1:
        raise InputError(f"{kind}: layer_decay lies in (0, 1], got {layer_decay}")
    for role, rate in rates.items():
        if role not in ROLES:
            raise InputError(f"{kind}: rates.{role}: there is no such role; {nearest(role, ROLES)}")
        if not rate > 0:
            raise InputError(f"{kind}: rates.{role} must be positive, got {rate}; freeze what is not to be trained")
