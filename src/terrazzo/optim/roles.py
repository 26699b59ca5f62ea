"""What each parameter is to an optimizer: its role, and how many matrices its rows hold.

Everything here is a function of module types, names and shapes; nothing depends on values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, Protocol, get_args, runtime_checkable

from torch import nn

Role = Literal["embedding", "matrix", "norm", "bias", "head"]
ROLES: tuple[Role, ...] = get_args(Role)

#: Parameters of an encoder, alone or below `encoder`: a block's by its number, or the embeddings'.
_ENCODER_PART = re.compile(r"(?:encoder\.)?(?:blocks\.(?P<block>\d+)|embeddings)\.")


@runtime_checkable
class Stacked(Protocol):
    """A module whose `weight` holds `stacked` matrices of one shape, one under the other (fused Q, K, V)."""

    stacked: int


def roles(model: nn.Module) -> dict[str, Role]:
    """The role of every parameter of `model`, by name; a tied parameter counts once, under its first name.

    embedding: a table (`nn.Embedding`), and whatever has two dimensions below a module named `embeddings`.
    norm: gain and bias of a module whose `weight` is a vector, whatever its class.
    bias: every other vector or scalar.
    head: a matrix below a module named `head`: it writes predictions, not hidden states.
    matrix: every other parameter with two or more dimensions; leading dimensions beyond two count matrices.
    """
    return {name: _role(name, module, local) for name, module, local in _owners(model)}


def stacks(model: nn.Module) -> dict[str, int]:
    """How many matrices of one shape the rows of each parameter hold, by name; 1 where nothing is fused."""
    return {
        name: module.stacked if isinstance(module, Stacked) and local == "weight" else 1
        for name, module, local in _owners(model)
    }


def layers_above(model: nn.Module) -> dict[str, int]:
    """How many layers of the encoder lie between each parameter and the encoder's output, by name.

    0 for the last block and for all that is neither block nor embedding; the depth for embeddings.
    """
    parts = {name: _ENCODER_PART.match(name) for name, _ in model.named_parameters()}
    blocks = {name: int(part["block"]) for name, part in parts.items() if part and part["block"]}
    depth = 1 + max(blocks.values(), default=-1)
    return {name: depth - 1 - blocks.get(name, -1) if part else 0 for name, part in parts.items()}


def _owners(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Each parameter's full name, the module that holds it, and its name there."""
    for name, _ in model.named_parameters():
        path, _, local = name.rpartition(".")
        yield name, model.get_submodule(path), local


def _role(name: str, module: nn.Module, local: str) -> Role:
    parameter = module.get_parameter(local)
    path = name.split(".")[:-1]
    if isinstance(module, nn.Embedding) or (parameter.ndim >= 2 and "embeddings" in path):
        return "embedding"
    if parameter.ndim >= 2:
        return "head" if "head" in path else "matrix"
    own = dict(module.named_parameters(recurse=False))
    return "norm" if "weight" in own and own["weight"].ndim == 1 else "bias"
