"""Processes of a run: torchrun's ranks, gloo on CPU and NCCL on GPU, DDP or FSDP2, the same code.

Counts and flags travel over a gloo group of their own, so that no step waits for the device to learn them.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from terrazzo.errors import InputError, RunError
from terrazzo.nn import Encoder
from terrazzo.packed import Packed

T = TypeVar("T")
TIMEOUT = datetime.timedelta(minutes=10)


@dataclass(frozen=True)
class Ranks:
    """This process among the others; a single process needs no torchrun."""

    rank: int
    world_size: int
    device: torch.device
    control: dist.ProcessGroup | None = None
    #: Ranks on this machine, which share its memory.
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all ranks, in float64."""
        if self.control is None:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.control)
        return [float(v) for v in total]

    def smallest(self, value: int) -> int:
        """The least of all ranks' values."""
        if self.control is None:
            return value
        least = torch.tensor(value)
        dist.all_reduce(least, dist.ReduceOp.MIN, group=self.control)
        return int(least)

    def gather(self, value: T) -> list[T]:
        """Every rank's value, which travels pickled, in the order of the ranks."""
        if self.control is None:
            return [value]
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return cast(list[T], values)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.control is not None:
            dist.barrier(group=self.control)


@contextmanager
def _lost_rank() -> Iterator[None]:
    """Turn a broken collective into an error that says what happened."""
    try:
        yield
    except RunError:
        raise
    except RuntimeError as error:
        words = ("Connection", "connection", "Timed out", "timed out", "gloo")
        if not isinstance(error, dist.DistError) and not any(word in str(error) for word in words):
            raise
        raise RunError(
            f"another rank stopped answering ({error}); start the same command with --resume to go on from the last "
            "checkpoint"
        ) from error


@contextmanager
def joined(device: Literal["auto", "cpu", "cuda"]) -> Iterator[Ranks]:
    """Join the ranks that torchrun started, if it did; leave them at the end, unless they were joined before.

    Raises:
        InputError: no GPU where one was asked for.
        RunError: another rank died, or did not answer for ten minutes.
    """
    wanted = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("device: cuda was asked for, and PyTorch sees no GPU here; use device=cpu or auto")
    if "RANK" not in os.environ:
        yield Ranks(0, 1, torch.device(wanted))
        return
    local = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if wanted == "cuda" else torch.device("cpu")
    if local.type == "cuda":
        torch.cuda.set_device(local)
    joined_before = dist.is_initialized()
    if not joined_before:
        dist.init_process_group("cpu:gloo,cuda:nccl" if wanted == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        with _lost_rank():
            control = dist.new_group(backend="gloo", timeout=TIMEOUT)
            yield Ranks(dist.get_rank(), dist.get_world_size(), local, control, int(os.environ["LOCAL_WORLD_SIZE"]))
    finally:
        if not joined_before:
            dist.destroy_process_group()


class StepModule(nn.Module):
    """Model and objective as one module whose forward is the loss, which is what DDP and FSDP2 wrap.

    `module(batch, outputs=True)` gives what the model itself gives, for evaluations.
    """

    def __init__(self, model: nn.Module, objective: Any) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    @property
    def encoder(self) -> Encoder:
        encoder = self.model.get_submodule("encoder")
        assert isinstance(encoder, Encoder)
        return encoder

    def forward(self, batch: Packed, outputs: bool = False) -> Any:
        if outputs:
            return self.model(batch)
        loss = self.objective.loss(self.model, batch)
        return loss.sum, loss.logs


def wrap(module: StepModule, ranks: Ranks, method: Literal["ddp", "fsdp2"]) -> nn.Module:
    """The module as `method` runs it on several ranks; on one rank it stays as it is."""
    if ranks.world_size == 1:
        return module
    if method == "fsdp2":
        for block in module.encoder.blocks:
            fully_shard(block)
        fully_shard(module)
        return module
    return DistributedDataParallel(module, gradient_as_bucket_view=True)


@contextmanager
def gradient_sync(module: nn.Module, enabled: bool) -> Iterator[None]:
    """Reduce gradients over ranks in the backward pass inside only if `enabled`: on the last micro-batch."""
    if isinstance(module, DistributedDataParallel):
        if enabled:
            yield
        else:
            with module.no_sync():
                yield
        return
    if isinstance(module, torch.distributed.fsdp.FSDPModule):
        module.set_requires_gradient_sync(enabled)
    yield
