"""Several fine-tunings of one base made one encoder: their differences dropped, rescaled and joined; every head stays.

Shapes: K fine-tunings.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from terrazzo.compression.deltas import Base, add, changes_of, check_probability, drop_all, head_of, task_model
from terrazzo.compression.regmean import Inputs, regmean
from terrazzo.config import nearest
from terrazzo.data.files import sync_folder
from terrazzo.errors import InputError
from terrazzo.provenance import provenance, write_json_atomic
from terrazzo.tasks.adapters.base import largest
from terrazzo.tasks.label import LabelTask
from terrazzo.tasks.model import LoadedTask, save_task_model
from terrazzo.tasks.multi import MultiTask, Problem
from terrazzo.tasks.training import tokenizer_file

Method = Literal["average", "arithmetic", "ties", "regmean"]
METHODS: tuple[Method, ...] = get_args(Method)
RECORD, FORMAT = "merge.json", "terrazzo-merge-1"
#: The folder of the model that answers all tasks by name.
TOGETHER = "all"


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What a merging left.

    Args:
        folders: a task folder for each fine-tuning by its name: the encoder that all share, and its own head.
        together: a `multi` model of the same encoder and all heads, None where the tasks cannot be one.
        note: why there is one, or why not.
    """

    folders: Mapping[str, Path]
    together: Path | None
    note: str


def combine(changes_K: Sequence[Tensor], method: Method, density: float = 1.0) -> Tensor:
    """Several changes of one tensor as one.

    Args:
        method: "average" and "arithmetic" take mean and sum. "ties" leaves each the `density` of its largest entries,
            takes for every entry the sign that the sum has, and averages those that have it and are not 0.

    Reference: task arithmetic (arXiv 2212.04089), section 2; TIES (arXiv 2306.01708), algorithm 1.
    """
    if method == "average":
        return torch.stack(list(changes_K)).mean(0)
    assert method != "regmean", "regmean joins tensors with their inputs, not changes"
    if method == "arithmetic":
        return torch.stack(list(changes_K)).sum(0)
    return elected_mean(torch.stack([trimmed(change, density) for change in changes_K]))


def trimmed(change: Tensor, density: float) -> Tensor:
    """The largest entries alone, as many as `density` says."""
    return change * largest(change.abs(), change.numel() - int(density * change.numel()))


def elected_mean(changes_K: Tensor) -> Tensor:
    """The mean of those entries that have the sign of the sum over K and are not 0; 0 where there are none."""
    sign = torch.where(changes_K.sum(0) >= 0, 1.0, -1.0)
    agrees_K = changes_K.sign() == sign
    return (changes_K * agrees_K).sum(0) / agrees_K.sum(0).clamp(min=1)


def merge(
    base: str | Path,
    folders: Sequence[str | Path] | Mapping[str, str | Path],
    out: str | Path,
    p: float = 0.9,
    method: Method = "average",
    seed: int = 0,
    *,
    scale: float = 1.0,
    weights: Mapping[str, float] | None = None,
    density: float = 1.0,
    rescale: bool = True,
    inputs: Mapping[str, Inputs] | None = None,
) -> Merged:
    """Merge fine-tunings of one base and write OUT: a task folder for each, all with the same encoder, and merge.json.

    Where all are classifications with heads of one shape, OUT/all is a `multi` model of them: one encoder, and a
    problem for each, which rows name.

    Args:
        base: the model that every fine-tuning began with.
        folders: task folders, or what finetune wrote; as a mapping by the name that each is to have.
        p: probability to drop an entry of a difference; what stays is divided by 1 - p.
        method: how differences are joined, see `combine`; density is that of "ties". "regmean" solves for the matrices
            that give on each task's own `inputs` what its fine-tuning gave; weights then say how much each task counts.
        scale: factor of the joined difference.
        weights: factors of single differences before they are joined, by name, 1 where there is none: a fine-tuning at
            a higher learning rate goes further, and drowns the others.
        rescale: without, dropped entries shrink the differences (for comparisons).

    Raises:
        InputError: less than two folders, one of another base or vocabulary, a value that cannot be, or an OUT that
            holds something.
    """
    _check(p, method, scale, density)
    named, out, weights = _named(folders), Path(out), dict(weights or {})
    _check_weights(weights, named)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} holds other files: choose another --out")
    opened = Base.open(base)
    loaded = {name: opened.open_task(folder) for name, folder in named.items()}
    changes = {name: changes_of(task.model, opened) for name, task in loaded.items()}
    dropped = {name: drop_all(own, p, seed, label=name, rescale=rescale) for name, own in changes.items()}
    weighed = [(weights.get(name, 1.0), own) for name, own in dropped.items()]
    if method == "regmean":
        states = {name: add(opened.state, own) for name, own in dropped.items()}
        state = regmean(states, inputs or {}, {name: weights.get(name, 1.0) for name in named})
    else:
        joined = {
            name: scale * combine([weight * own[name] for weight, own in weighed], method, density)
            for name in opened.state
        }
        state = add(opened.state, joined)
    together, note = one_task(loaded)
    record = {
        "format": FORMAT,
        "base": {"folder": str(base), "fingerprint": opened.fingerprint},
        "method": {
            "p": p,
            "method": method,
            "seed": seed,
            "scale": scale,
            "weights": weights,
            "density": density,
            "rescale": rescale,
        },
        "models": {name: {"folder": str(named[name]), **sizes(changes[name])} for name in named},
        "together": None if together is None else TOGETHER,
        "note": note,
        "provenance": provenance(),
    }
    with _folder_of(out) as temporary:
        _write(temporary, opened, loaded, together, state, record)
    return Merged(
        folders={name: out / name for name in named}, together=out / TOGETHER if together else None, note=note
    )


@dataclass(frozen=True, kw_only=True)
class Together:
    """A task of several problems, with the heads of the fine-tunings as one."""

    task: MultiTask
    head: Mapping[str, Tensor]
    max_len: int


def one_task(loaded: Mapping[str, LoadedTask]) -> tuple[Together | None, str]:
    """The task of several problems that fine-tunings make together, and why, or why not.

    The longest of their lengths of a text counts.
    """
    tasks: dict[str, LabelTask] = {}
    for name, own in loaded.items():
        task = own.model.task
        if not isinstance(task, LabelTask) or task.several:
            what = "several classes a row" if isinstance(task, LabelTask) else f"kind {task.kind!r}"
            return None, f"no folder for all tasks: {name} has {what}, a problem of many has one class a row"
        if task.hidden:
            return None, f"no folder for all tasks: the head of {name} has a hidden layer of its own"
        tasks[name] = task
    pooling = {name: task.pooling for name, task in tasks.items()}
    if len(set(pooling.values())) > 1:
        return None, f"no folder for all tasks: their heads pool in different ways: {pooling}"
    problems = [Problem(name=name, classes=task.classes, counts=task.counts) for name, task in tasks.items()]
    head = {
        name.replace("head.out.0.", f"head.out.{index}."): tensor
        for index, own in enumerate(loaded.values())
        for name, tensor in head_of(own.model).items()
    }
    task = MultiTask(problems=tuple(problems), pooling=next(iter(pooling.values())))
    note = f"{TOGETHER} answers every task; its rows name theirs in the field problem: {', '.join(tasks)}"
    return Together(task=task, head=head, max_len=max(own.max_len for own in loaded.values())), note


def sizes(changes: Mapping[str, Tensor]) -> dict[str, float]:
    """How far a fine-tuning went: its largest and mean change of an entry; dropping is for small ones."""
    entries = sum(change.numel() for change in changes.values())
    total = sum(float(change.abs().sum(dtype=torch.float64)) for change in changes.values())
    return {"largest": max(float(change.abs().max()) for change in changes.values()), "mean": total / entries}


def _write(
    folder: Path,
    base: Base,
    loaded: Mapping[str, LoadedTask],
    together: Together | None,
    state: Mapping[str, Tensor],
    record: Mapping[str, Any],
) -> None:
    note = {"merge": {name: record[name] for name in ("base", "method", "models")}}
    models = {
        name: (task_model(base, state, head_of(own.model), own.model.task), own.max_len) for name, own in loaded.items()
    }
    if together is not None:
        models[TOGETHER] = task_model(base, state, together.head, together.task), together.max_len
    with tokenizer_file(base.tokenizer) as tokenizer:
        for name, (model, max_len) in models.items():
            save_task_model(folder / name, model, tokenizer, note, max_len=max_len)
    write_json_atomic(folder / RECORD, record)


@contextmanager
def _folder_of(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` on leaving the block and vanishes if the block raises."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, out)
        sync_folder(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _named(folders: Sequence[str | Path] | Mapping[str, str | Path]) -> dict[str, Path]:
    pairs = folders.items() if isinstance(folders, Mapping) else [(_name(Path(folder)), folder) for folder in folders]
    named: dict[str, Path] = {}
    for name, folder in pairs:
        if name in (TOGETHER, RECORD) or Path(name).name != name or name.startswith("."):
            raise InputError(f"{folder}: {name!r} cannot be the name of its folder in OUT: give another, NAME={folder}")
        if name in named:
            raise InputError(f"{folder} and {named[name]} are both called {name!r}: give names, NAME={folder}")
        named[name] = Path(folder)
    if len(named) < 2:
        raise InputError(f"merging takes two fine-tunings or more, got {len(named)}")
    return named


def _name(folder: Path) -> str:
    """What a fine-tuning is called: its folder, or the one around `model`."""
    resolved = folder.resolve()
    return resolved.parent.name if resolved.name == "model" else resolved.name


def _check(p: float, method: str, scale: float, density: float) -> None:
    check_probability(p)
    if method not in METHODS:
        raise InputError(f"method {method!r}: {nearest(method, METHODS)}")
    if not math.isfinite(scale) or scale <= 0:
        raise InputError(f"scale must be above 0, got {scale}")
    if not 0 < density <= 1:
        raise InputError(f"density is the share of entries that ties leaves, above 0 and at most 1, got {density}")
    if method == "regmean" and scale != 1:
        raise InputError(f"scale {scale}: method 'regmean' solves for the encoder itself: leave it out")
    if density < 1 and method != "ties":
        raise InputError(f"density {density}: only method 'ties' leaves out the smallest entries")


def _check_weights(weights: Mapping[str, float], named: Mapping[str, Path]) -> None:
    for name, weight in weights.items():
        if name not in named:
            raise InputError(f"weights: {name!r} is none of the models: {nearest(name, named)}")
        if not math.isfinite(weight):
            raise InputError(f"weights: that of {name} is {weight}: give a number")
