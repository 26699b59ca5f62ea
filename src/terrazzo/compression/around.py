"""A stage around another one: everything is the inner stage's but what a subclass says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from terrazzo.data import StepSource
from terrazzo.objectives import Objective
from terrazzo.packed import Packed
from terrazzo.train.distributed import Ranks
from terrazzo.train.workload import StageWork


class StageAround:
    """The model, steps and files of `inner`."""

    def __init__(self, inner: StageWork) -> None:
        self.inner = inner
        self.model: nn.Module = inner.model
        self.stream: StepSource = inner.stream
        self.objective: Objective = inner.objective
        self.micro_tokens, self.step_tokens = inner.micro_tokens, inner.step_tokens
        self.step_words, self.counted = inner.step_words, inner.counted

    def evaluate(self, module: nn.Module, ranks: Ranks, autocast: AbstractContextManager[None]) -> Mapping[str, Any]:
        """Its figures."""
        return self.inner.evaluate(module, ranks, autocast)

    def flops(self, batches: Sequence[Packed]) -> float:
        """Its operations: masked and rounded weights take part in dense products."""
        return self.inner.flops(batches)

    def sources(self, step: int) -> list[str]:
        """Where its rows stand."""
        return self.inner.sources(step)

    def write(self, folder: Path, state: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> None:
        """Its files."""
        self.inner.write(folder, state, provenance)

    def read(self, folder: Path) -> Mapping[str, Tensor]:
        """Its tensors."""
        return self.inner.read(folder)

    def assemble(self, state: Mapping[str, Tensor]) -> nn.Module:
        """Its model around gathered tensors."""
        return self.inner.assemble(state)
