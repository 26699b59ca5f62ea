"""Checkpoints of a run: a model folder that also holds the optimizer's state, whole or absent, the last few kept."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from terrazzo.checkpoint import atomic_folder
from terrazzo.config import from_dict
from terrazzo.errors import InputError
from terrazzo.provenance import write_json_atomic
from terrazzo.train.distributed import StepModule


@dataclass
class Counters:
    """How far a run is; with the config and the data this decides everything that follows.

    Args:
        stage: index of the current stage; step, stage_tokens, stage_seconds count within it.
        progress, evaluated: share of the stage's budget spent, 1 at its end, and spent at the last evaluation.
        micro_tokens: what the stage was begun with; other micro-batches would round other sums.
        total_steps, tokens, seconds: over all stages and resumptions.
        smoothed_loss, lowest_loss: of the training loss, to notice divergence.
        best_score, best_step: of the stage's evaluations; without_gain counts those after it.
        settled: the best weights have been made the stage's result.
    """

    stage: int = 0
    step: int = 0
    stage_tokens: int = 0
    stage_seconds: float = 0.0
    progress: float = 0.0
    evaluated: float = 0.0
    micro_tokens: int | None = None
    total_steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    smoothed_loss: float | None = None
    lowest_loss: float | None = None
    best_score: float | None = None
    best_step: int | None = None
    without_gain: int = 0
    settled: bool = False

    def next_stage(self) -> None:
        """Begin the stage after this one."""
        self.stage += 1
        self.step, self.stage_tokens, self.stage_seconds = 0, 0, 0.0
        self.progress = self.evaluated = 0.0
        self.micro_tokens = self.smoothed_loss = self.lowest_loss = None
        self.best_score, self.best_step, self.without_gain, self.settled = None, None, 0, False

    def judge(self, score: float) -> bool:
        """Take an evaluation's score in; whether it is the best of the stage so far."""
        gain = math.isfinite(score) and (self.best_score is None or score > self.best_score)
        if gain:
            self.best_score, self.best_step = score, self.total_steps
        self.without_gain = 0 if gain else self.without_gain + 1
        return gain


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk."""

    path: Path
    counters: Counters

    def optimizer_state(self) -> dict[str, Any]:
        """The optimizer's state dict, tensors on CPU.

        Raises:
            InputError: the file is missing or damaged.
        """
        file = self.path / "optimizer.pt"
        try:
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
            whole = {"state", "param_groups"} <= set(state)
        except (OSError, RuntimeError, EOFError, TypeError, pickle.UnpicklingError) as error:
            raise InputError(f"{file}: damaged ({' '.join(str(error).split()) or 'empty'}); {self.mend}") from None
        if not whole:
            raise InputError(f"{file}: damaged (it holds no optimizer's state); {self.mend}")
        return state

    @property
    def mend(self) -> str:
        """What to do where the checkpoint cannot be read."""
        return f"delete {self.path} to resume from the checkpoint before"


def checkpoint_folder(run: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return run / "checkpoints"


def save_best(run: Path, counters: Counters, write: Callable[[Path], None]) -> None:
    """Write RUN/best, the best weights as of the checkpoint that is being made, under a temporary name."""
    with atomic_folder(run / "best") as temporary:
        write(temporary)
        standing = {"stage": counters.stage, "step": counters.best_step, "score": counters.best_score}
        write_json_atomic(temporary / "best.json", standing)


def best_folder(run: Path, counters: Counters) -> Path:
    """RUN/best, once it is sure to hold what the counters call the best, or what came after it and was better.

    Raises:
        InputError: it is missing, or of another stage or an earlier step.
    """
    file = run / "best" / "best.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    if found.get("stage") != counters.stage or found.get("step", -1) < (counters.best_step or 0):
        raise InputError(
            f"{run / 'best'}: does not hold the weights of step {counters.best_step}, the best of this stage: restore "
            "it from a copy, or delete all checkpoints to begin again"
        )
    return run / "best"


def latest_checkpoint(run: Path) -> Checkpoint | None:
    """The newest complete checkpoint of a run, None if there is none.

    Raises:
        InputError: its counters do not parse.
    """
    folders = sorted(p for p in checkpoint_folder(run).glob("step-*") if (p / "counters.json").is_file())
    if not folders:
        return None
    file = folders[-1] / "counters.json"
    try:
        values = json.loads(file.read_text())
        Counters(**values)
        return Checkpoint(folders[-1], from_dict(Counters, values, "damaged"))
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{file}: damaged ({error}); delete {folders[-1]} to resume from the checkpoint before"
        ) from None


def whole_model(module: nn.Module) -> dict[str, Tensor]:
    """The model's state dict, the same however it is distributed; with FSDP2 all ranks must ask."""
    return {name: _whole(tensor) for name, tensor in step_module(module).model.state_dict().items()}


def copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of its own, on the host."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}


@torch.no_grad()
def restore_model(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give the model inside `module` the tensors of a whole state dict, each rank its shards."""
    for name, tensor in step_module(module).model.state_dict().items():
        tensor.copy_(_like(state[name], tensor))


def whole_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state dict, the same however the model is distributed; with FSDP2 all ranks must ask."""
    state = optimizer.state_dict()
    whole = {index: {name: _whole(value) for name, value in own.items()} for index, own in state["state"].items()}
    return {**state, "state": whole}


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give a fresh optimizer the state that `whole_optimizer` took, each rank its shards."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    indices = [index for group in state["param_groups"] for index in group["params"]]
    shards = {
        index: {name: _like(value, parameter) for name, value in state["state"][index].items()}
        for index, parameter in zip(indices, parameters, strict=True)
        if index in state["state"]
    }
    optimizer.load_state_dict({**state, "state": shards})


def _whole(value: Any) -> Any:
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def _like(value: Any, parameter: Tensor) -> Any:
    if not (isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape):
        return value
    on_device = value.to(parameter.device)
    return distribute_tensor(on_device, parameter.device_mesh, parameter.placements, src_data_rank=None)


def step_module(module: nn.Module) -> StepModule:
    """The `StepModule` inside DDP or FSDP2."""
    inner = module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module
    assert isinstance(inner, StepModule)
    return inner


def save_checkpoint(
    run: Path,
    counters: Counters,
    write: Callable[[Path], None],
    optimizer: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write a checkpoint under a temporary name, rename it into place, then delete all but the last `keep`.

    `write` writes the model's files into the folder that it is given.
    """
    folder = checkpoint_folder(run)
    final = folder / f"step-{counters.total_steps:08d}"
    with atomic_folder(final) as temporary:
        write(temporary)
        with open(temporary / "optimizer.pt", "wb") as file:
            save(optimizer, file)
        write_json_atomic(temporary / "counters.json", dataclasses.asdict(counters))
    for old in sorted(folder.glob("step-*"))[:-keep]:
        # A checkpoint that a kill left half deleted must not pass for one.
        gone = old.with_name(f".{old.name}.{os.getpid()}.tmp")
        os.rename(old, gone)
        shutil.rmtree(gone)
    return final


def save(state: Mapping[str, Any], file: BinaryIO) -> None:
    """`torch.save`, which hides the system's error behind a RuntimeError, without that."""
    try:
        torch.save(state, file)
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        raise cause or error from None


def remove_unfinished(run: Path) -> None:
    """Delete what killed processes left half written, or half deleted, among the checkpoints."""
    for leftover in checkpoint_folder(run).glob(".step-*.tmp"):
        shutil.rmtree(leftover)
