"""The table of attention backends and which one a device gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

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


@runtime_checkable
class ExplicitBackend(Backend, Protocol):
    """A backend that forms the attention weights, so that they need not be a softmax."""

    def attend_explicitly(
        self, qkv_T3NH: Tensor, plan: Any, dropout: float, weigh: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """As `attend`; `weigh` makes weights of scores, with 0 where a score is minus infinity or about -1e38."""


BACKENDS: dict[str, Backend] = {"reference": Reference(), "grouped": Grouped(), "flex": Flex()}


def default_backend(device: torch.device, explicit: bool = False) -> str:
    """The measured choice for a device: grouped flash kernels on CPU, FlexAttention on GPU.

    Args:
        explicit: the weights are no plain softmax; on GPU only the reference, a document at a time, forms them.
    """
    if device.type == "cuda":
        return "reference" if explicit else "flex"
    return "grouped"
