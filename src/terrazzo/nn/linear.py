"""Linear layers that hold several matrices of one shape in one product, or nothing at all."""

from __future__ import annotations

from torch import nn


class Linear(nn.Linear):
    """`nn.Linear` that may have no inputs, and then gives its bias, or no outputs."""

    def reset_parameters(self) -> None:
        if self.weight.numel():
            super().reset_parameters()
        elif self.bias is not None:
            nn.init.zeros_(self.bias)


class StackedLinear(Linear):
    """`stacked` projections of one input, computed as one product: (Q, K, V) or (gate, value).

    Methods that care about single matrices (Muon's orthogonalisation, initialisation, pruning) split the rows of
    `weight` into `stacked` equal parts.
    """

    def __init__(self, in_features: int, out_each: int, stacked: int, bias: bool = True) -> None:
        super().__init__(in_features, stacked * out_each, bias=bias)
        self.stacked = stacked
