"""What a run learns and from what: the part of training that the loop knows nothing of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from terrazzo.data import StepSource
from terrazzo.packed import Packed
from terrazzo.train.distributed import Ranks
from terrazzo.train.run import RunConfig
from terrazzo.train.stage import Stage


@dataclass(frozen=True, kw_only=True)
class StageStart:
    """What a stage is begun with.

    Args:
        config: of the whole run; stage: the one of its stages that begins.
        seed: keys everything random in the stage; torch's own generator is already seeded with it.
        dtype: of matrix products.
        previous: the model of the stage before, in this process; None at the start and after resuming.
        resumed: the folder of the checkpoint that the stage goes on from.
        micro_tokens: the micro-batch that the stage was begun with, so that resuming rounds alike.
    """

    config: RunConfig
    stage: Stage
    seed: int
    ranks: Ranks
    dtype: torch.dtype
    previous: nn.Module | None = None
    resumed: Path | None = None
    micro_tokens: int | None = None

    @property
    def bf16(self) -> bool:
        return self.dtype == torch.bfloat16


class StageWork(Protocol):
    """One stage of a workload: model, data and what is asked of them.

    Args:
        model: what is trained; its `encoder` is an `Encoder`.
        objective: prepares batches and gives their loss; schedules set its attributes.
        stream: what every step consists of.
        micro_tokens: most tokens of one micro-batch.
        step_tokens: tokens of a step, on average; step_words says what a step is.
        counted: what a metrics line calls the number of predictions that the loss is the mean of.
    """

    micro_tokens: int
    step_tokens: float
    step_words: str
    counted: str

    @property
    def model(self) -> nn.Module: ...

    @property
    def objective(self) -> Any: ...

    @property
    def stream(self) -> StepSource: ...

    def evaluate(self, module: nn.Module, ranks: Ranks, autocast: AbstractContextManager[None]) -> Mapping[str, Any]:
        """Figures of an evaluation line, the same on every rank: `heldout_loss`, `score` (higher is better), others.

        Where the score is one of several metrics, `metric` names it.

        `module` is the `StepModule` as it trains; every rank must run it equally often.
        """
        ...

    def flops(self, batches: Sequence[Packed]) -> float:
        """Operations of matrix products to train on these micro-batches."""
        ...

    def sources(self, step: int) -> list[str]:
        """What step `step` of the stage reads, to name it when something goes wrong."""
        ...

    def write(self, folder: Path, state: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> None:
        """Write the model with the tensors of `state` into an existing folder, so that a stage can go on from it."""
        ...

    def read(self, folder: Path) -> Mapping[str, Tensor]:
        """The state dict that `write` wrote.

        Raises:
            InputError: the folder is damaged.
        """
        ...

    def assemble(self, state: Mapping[str, Tensor]) -> nn.Module:
        """A model around gathered tensors, which the next stage or `Workload.finish` takes."""
        ...


class Workload(Protocol):
    """What a run learns: pretraining on a corpus is one, a labelled task another."""

    @property
    def fingerprint(self) -> str:
        """Changes with everything about the data that training depends on: a run resumes on equal data alone."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """What run.json and the report say of it; `kind` names it."""
        ...

    def check(self, config: RunConfig, ranks: Ranks, dtype: torch.dtype) -> None:
        """Refuse what a run would stumble over later; nothing is written yet.

        Raises:
            InputError: naming the field and the mend.
        """
        ...

    def begin(self, start: StageStart) -> StageWork:
        """Model, batches and evaluation of a stage.

        Raises:
            InputError: the stage cannot be begun.
        """
        ...

    def finish(self, run: Path, model: nn.Module, provenance: Mapping[str, Any]) -> None:
        """Write RUN/model and what else the end of a run leaves, on one rank."""
        ...
