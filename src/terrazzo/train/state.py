"""Checkpoints of a run: a model folder that also holds the optimizer's state, whole or absent, the last few kept."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule

from terrazzo.checkpoint import atomic_folder, write_model
from terrazzo.errors import InputError
from terrazzo.nn import EncoderConfig, MaskedLM
from terrazzo.provenance import write_json_atomic
from terrazzo.train.distributed import StepModule

_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass
class Counters:
    """How far a run is; with the config and the data this decides everything that follows.

    Args:
        stage: index of the current stage; step, stage_tokens, stage_seconds count within it.
        total_steps, tokens, seconds: over all stages and resumptions.
        smoothed_loss, lowest_loss: of the training loss, to notice divergence.
    """

    stage: int = 0
    step: int = 0
    stage_tokens: int = 0
    stage_seconds: float = 0.0
    total_steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    smoothed_loss: float | None = None
    lowest_loss: float | None = None

    def next_stage(self) -> None:
        """Begin the stage after this one."""
        self.stage += 1
        self.step, self.stage_tokens, self.stage_seconds = 0, 0, 0.0
        self.smoothed_loss = self.lowest_loss = None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk."""

    path: Path
    counters: Counters

    def optimizer_state(self) -> dict[str, Any]:
        """The optimizer's state dict, tensors on CPU."""
        state: dict[str, Any] = torch.load(self.path / "optimizer.pt", map_location="cpu", weights_only=True)
        return state


def checkpoint_folder(run: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return run / "checkpoints"


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
        return Checkpoint(folders[-1], Counters(**json.loads(file.read_text())))
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{file}: damaged ({error}); delete {folders[-1]} to resume from the checkpoint before"
        ) from None


def gather(module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """State dicts of model and optimizer, whole on every rank that asks; with FSDP2 all ranks must ask."""
    if isinstance(module, FSDPModule):
        model_state = get_model_state_dict(module, options=_FULL)
        return (
            {key.removeprefix("model."): value for key, value in model_state.items()},
            get_optimizer_state_dict(module, optimizer, options=_FULL),
        )
    return step_module(module).model.state_dict(), optimizer.state_dict()


def restore_optimizer(module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give a fresh optimizer its saved state back."""
    if isinstance(module, FSDPModule):
        set_optimizer_state_dict(module, optimizer, state, options=StateDictOptions(full_state_dict=True))
    else:
        optimizer.load_state_dict(state)


def step_module(module: nn.Module) -> StepModule:
    """The `StepModule` inside DDP or FSDP2."""
    inner = module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module
    assert isinstance(inner, StepModule)
    return inner


def save_checkpoint(
    run: Path,
    counters: Counters,
    config: EncoderConfig,
    states: tuple[Mapping[str, Any], Mapping[str, Any]],
    tokenizer: Path,
    provenance: dict[str, Any],
    keep: int,
) -> Path:
    """Write a checkpoint under a temporary name, rename it into place, then delete all but the last `keep`."""
    folder = checkpoint_folder(run)
    final = folder / f"step-{counters.total_steps:08d}"
    with atomic_folder(final) as temporary:
        write_model(temporary, assemble(config, states[0]), tokenizer, provenance)
        torch.save(states[1], temporary / "optimizer.pt")
        write_json_atomic(temporary / "counters.json", dataclasses.asdict(counters))
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return final


def assemble(config: EncoderConfig, state: Mapping[str, Any]) -> MaskedLM:
    """A model around gathered tensors, without a second copy of them."""
    with torch.device("meta"):
        model = MaskedLM(config)
    model.load_state_dict(state, assign=True)
    return model
