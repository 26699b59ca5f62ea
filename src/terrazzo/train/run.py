"""The config of a run, and where it comes from: defaults, a file, the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any, Literal

from terrazzo.config import config, from_dict, nearest, override
from terrazzo.errors import InputError
from terrazzo.train.stage import Stage

_STAGE_FIELDS = {f.name for f in dataclasses.fields(Stage)}
_FIRST_STAGE_FIELDS = {"model", "name"}
#: The kind that a table without `kind` means.
_DEFAULT_KINDS = {"model": "init", "objective": "mlm", "optimizer": "muon"}


@config
class RunConfig:
    """Everything that decides a run; written to RUN/run.json before the first step.

    Args:
        data: the data folder that `prepare` made.
        out: the run folder.
        device: "auto" takes a GPU if there is one.
        precision: "bf16" computes under autocast with fp32 weights; "auto" takes it where the hardware has it.
        distributed: with several processes, "ddp" replicates the model, "fsdp2" shards it.
        compile: compile the blocks with torch.compile.
        threads: CPU threads of each process; None leaves PyTorch's choice.
        checkpoint_every: steps between checkpoints; `keep` of them stay.
        eval_every: steps between evaluations on held-out documents; None evaluates ten times a stage and at its end.
        eval_tokens: most held-out tokens that one evaluation reads.
        divergence: stop when the smoothed loss is this many nats above its lowest value.
        price_per_hour: money an hour of this machine costs, for the report.
    """

    data: str
    out: str
    stages: tuple[Stage, ...] = field(default_factory=lambda: (Stage(),))
    seed: int = 17
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    distributed: Literal["ddp", "fsdp2"] = "ddp"
    compile: bool = False
    threads: int | None = None
    checkpoint_every: int = 500
    keep: int = 2
    eval_every: int | None = None
    eval_tokens: int = 65_536
    divergence: float = 2.0
    price_per_hour: float | None = None
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if not self.stages:
            raise InputError("stages: a run needs at least one")
        if self.stages[0].model.kind == "previous":
            raise InputError("stages.0.model: the first stage has no previous one; use kind 'init' or 'folder'")
        names = [stage.name for stage in self.stages]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise InputError(f"stages.{index}.name: {name!r} is the name of an earlier stage")
        for name in ("checkpoint_every", "keep", "eval_every", "eval_tokens", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if self.threads is not None and self.threads > 4096:
            raise InputError(f"threads must be at most 4096, got {self.threads}")
        if self.divergence <= 0:
            raise InputError(f"divergence must be above 0, got {self.divergence}")
        if self.price_per_hour is not None and self.price_per_hour < 0:
            raise InputError(f"price_per_hour must not be negative, got {self.price_per_hour}")


def resolve(values: Mapping[str, Any], assignments: Iterable[str] = (), source: str = "config") -> RunConfig:
    """A `RunConfig` from plain values and `key=value` assignments.

    A field of `Stage` at the top level goes to every stage, `model` and `name` to the first alone, so that a run of one
    stage is written without `stages`, and the stages of a longer one share what they have in common.

    Raises:
        InputError: an unknown key (the nearest one is named), a wrong type, a value that cannot be.
    """
    given = _spread_over_stages(values, source)
    chosen = override(given, _aim_at_stages(given, assignments))
    return from_dict(RunConfig, _spread_over_stages(chosen, source), source)


def _spread_over_stages(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    known = {f.name for f in dataclasses.fields(RunConfig)} | _STAGE_FIELDS
    for key in values:
        if key not in known:
            raise InputError(f"{source}: unknown key {key!r}: {nearest(key, known)}")
    stages = values.get("stages", [{}])
    if not isinstance(stages, (list, tuple)) or not all(isinstance(stage, dict) for stage in stages):
        raise InputError(f"{source}: stages: a list of tables, in TOML [[stages]]")
    rest = {key: value for key, value in values.items() if key not in _STAGE_FIELDS}
    first = {key: value for key, value in values.items() if key in _STAGE_FIELDS}
    later = {key: value for key, value in first.items() if key not in _FIRST_STAGE_FIELDS}
    return {
        **rest,
        "stages": [_stage({**(later if index else first), **own}, index) for index, own in enumerate(stages)],
    }


def _stage(given: dict[str, Any], index: int) -> dict[str, Any]:
    stage = {"model": {"kind": "previous"}, "name": f"stage-{index}", **given} if index else given
    tagged = {
        key: {"kind": _DEFAULT_KINDS[key], **value} if key in _DEFAULT_KINDS and isinstance(value, dict) else value
        for key, value in stage.items()
    }
    if isinstance(schedules := tagged.get("schedules"), dict):
        tagged["schedules"] = {
            name: {"kind": "ramp" if "end" in value else "linear", **value} if isinstance(value, dict) else value
            for name, value in _dotted(schedules).items()
        }
    return tagged


def _dotted(schedules: dict[str, Any]) -> dict[str, Any]:
    """`{"objective": {"rate": ...}}`, as dotted keys parse, with the name "objective.rate" that a schedule has."""
    rooms = [name for name in ("objective", "optimizer") if isinstance(schedules.get(name), dict)]
    flat = {name: value for name, value in schedules.items() if name not in rooms}
    for room in rooms:
        for key, value in schedules[room].items():
            name, before = f"{room}.{key}", flat.get(f"{room}.{key}")
            flat[name] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
    return flat


def _aim_at_stages(values: Mapping[str, Any], assignments: Iterable[str]) -> list[str]:
    aimed = []
    for assignment in assignments:
        head = assignment.partition("=")[0].split(".")[0].strip()
        if head in _FIRST_STAGE_FIELDS:
            aimed.append(f"stages.0.{assignment}")
        elif head in _STAGE_FIELDS:
            aimed += [f"stages.{index}.{assignment}" for index in range(len(values["stages"]))]
        else:
            aimed.append(assignment)
    return aimed
