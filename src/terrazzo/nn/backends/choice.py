"""The table of attention backends and which one a device gets."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from terrazzo.nn.backends.flex import Flex
from terrazzo.nn.backends.grouped import Grouped
from terrazzo.nn.backends.reference import Reference
from terrazzo.packed import Packed


class Backend(Protocol):
    """Attention over packed documents. Shapes: T packed tokens, N heads, H head width."""

    def plan(self, batch: Packed, slopes_N: Tensor | None, window: int | None, causal: bool = False) -> Any:
        """What can be computed once a batch: document boundaries, biases, masks; causal hides later tokens."""

    def attend(self, qkv_T3NH: Tensor, plan: Any, dropout: float) -> Tensor:
        """Attention output `(T, N * H)`; no token sees another document."""


BACKENDS: dict[str, Backend] = {"reference": Reference(), "grouped": Grouped(), "flex": Flex()}


def default_backend(device: torch.device) -> str:
    """The measured choice for a device: grouped flash kernels on CPU, FlexAttention on GPU."""
    return "flex" if device.type == "cuda" else "grouped"
