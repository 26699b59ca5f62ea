"""What training minimises: an objective prepares batches on the host and computes a loss on the device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from terrazzo.packed import Packed


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The loss of one micro-batch, as a sum so that micro-batches and ranks add up to the exact mean.

    Args:
        sum: fp32 scalar with a graph, summed over predictions.
        weight: number of predictions that `sum` adds up.
        logs: further sums over predictions, divided by the weight when shown, e.g. `correct`.
    """

    sum: Tensor
    weight: int | Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """Built by its config: `config.build(special, vocab_size, word_starts)`.

    What a schedule may change is a plain attribute, read afresh by every call.
    """

    def corrupt(self, batch: Packed, seed: int, *, evaluation: bool = False) -> Packed:
        """Fill `masked_M` and `labels_M`, and change tokens (host side).

        What happens to a document depends on `seed`, its identity and its epoch alone, not on its batch.
        """
        ...

    def loss(self, model: Any, batch: Packed) -> Loss:
        """The loss of `model` on a corrupted batch that is already on the model's device."""
        ...
