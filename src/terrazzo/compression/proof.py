"""Measuring every figure of a compressed model, for its proof and to prove it again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from terrazzo.compression.goal import Goal
from terrazzo.compression.proof_file import (
    PROOF,
    NotProved,
    Proof,
    Quality,
    Size,
    Speeds,
    read_proof,
    unproved,
    write_proof,
)
from terrazzo.compression.report import rewrite_report
from terrazzo.compression.rows import read_split
from terrazzo.compression.speed import PLAIN, Bench, Here, fastest
from terrazzo.compression.subject import Drop, Subject, drop_of, open_subject
from terrazzo.compression.timing import TooNoisy
from terrazzo.compression.verified import Verified, differing
from terrazzo.errors import InputError
from terrazzo.nn import Encoder
from terrazzo.provenance import provenance
from terrazzo.runtime import Runtime
from terrazzo.runtime.folder import GRAPHS, is_exported, is_weights, open_runtime, read_record
from terrazzo.runtime.machine import this_machine
from terrazzo.tasks.evaluate import fingerprint
from terrazzo.tasks.export import Source
from terrazzo.tasks.model import HEAD, LoadedTask, load_task_head, load_task_model, model_fingerprint, model_folder
from terrazzo.tasks.predict import Predictor


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Where a compressed model comes from, as `Proof` keeps it."""

    goal: Goal
    on: Here
    model: str
    model_fingerprint: str
    data: str
    held_out: str | None
    seed: int
    fields: Mapping[str, str]


def prove_folder(folder: Path, subject: Subject, bench: Bench, claim: Claim, predicted_ms: float | None) -> Proof:
    """Measure every figure of the compressed model in `folder` against the dense one."""
    small, runtime = open_small(folder, bench)
    rows = subject.proof.examples
    dense_answers = subject.answers(rows)
    small_answers = Predictor(small.model, small.tokenizer, small.max_len, runtime=runtime).predict(rows)
    quality = _quality(drop_of(subject.task, rows, dense_answers, small_answers), subject, claim.goal)
    size = size_of(folder, subject)
    speeds, noisy = _speeds(bench, subject.encoder, runtime, predicted_ms)
    why = unproved(claim.goal, speeds, quality, size)
    if noisy is not None and claim.goal.asks_speed:
        why.append(noisy)
    return Proof(
        goal=claim.goal,
        on=claim.on,
        model=claim.model,
        model_fingerprint=claim.model_fingerprint,
        data=claim.data,
        held_out=claim.held_out,
        rows=subject.split.fingerprint,
        seed=claim.seed,
        fields=dict(claim.fields),
        speeds=speeds,
        quality=quality,
        size=size,
        proved=not why,
        why=tuple(why),
        machine=bench.machine.key,
        provenance=provenance(),
    )


def size_of(folder: Path, subject: Subject) -> Size:
    """Bytes on disk of what runs in `folder`, and of the dense model in fp32."""
    if is_exported(folder):
        record = read_record(folder)
        names = GRAPHS[record.runtime] or tuple(name for name in record.files if is_weights(name))
    else:
        names = tuple(file.name for file in folder.iterdir() if is_weights(file.name))
    count = sum((folder / name).stat().st_size for name in (*names, HEAD))
    fp32 = 4 * sum(parameter.numel() for parameter in subject.model.parameters())
    return Size(bytes=count, fp32_bytes=fp32, smaller=fp32 / count)


def open_small(folder: Path, bench: Bench) -> tuple[LoadedTask, Runtime]:
    """The compressed task model, its encoder on its runtime with one stream on the bench's threads."""
    if is_exported(folder):
        return load_task_head(folder), open_runtime(folder, streams=1, threads=bench.on.threads)
    loaded = load_task_model(folder)
    return loaded, bench.open(loaded.model.encoder, "torch")


def prove(
    folder: str | Path,
    *,
    model: str | Path | None = None,
    data: str | Path | None = None,
    held_out: str | Path | None = None,
    here: bool = False,
    log: Callable[[str], None] | None = None,
    bench: Callable[[Subject, Here], Bench] = Bench,
) -> Verified:
    """Measure every figure of DIR/proof.json again.

    Args:
        model, data, held_out: where the dense model and the rows are now, if they moved.
        here: on another machine than the proof's, measure all speeds anew and write the proof of this machine.
            Speeds that a noisy machine withheld are written, and shown on the page, as soon as they can be measured; on
            one that is too noisy still, the result has none and says so.
        bench: makes what times models.

    Raises:
        InputError: no proof, another machine without `here`, or a model or rows that are not those of the proof.
    """
    folder, say = Path(folder), log or (lambda line: None)
    before, machine = read_proof(folder), this_machine()
    same = before.machine == machine.key
    if not same and not here:
        raise InputError(
            f"{folder / PROOF}: was proved on {before.machine}; this machine is {machine.key}, and speeds hold on one "
            f"machine alone: terrazzo prove {folder} --here measures them here and writes the proof anew"
        )
    source = _opened(folder, before, model)
    if model_fingerprint(model_folder(source.folder)) != before.model_fingerprint:
        raise InputError(
            f"{source.folder}: is not the model that {folder} was made from (weights, tokenizer or task.json differ): "
            "name that one with --model"
        )
    assert source.task is not None
    rows, judging = str(data or before.data), held_out or before.held_out
    for name, option in ((rows, "--data"), (judging, "--held-out")):
        if name is not None and Path(name).is_absolute() and not Path(name).exists():
            raise InputError(f"{name}: is no more where {folder / PROOF} has it: name it with {option}")
    split = read_split(source.task.model.task, rows, judging, before.goal.drop, before.seed, before.fields)
    if fingerprint(split.proof) != before.rows:
        raise InputError(
            f"{judging or rows}: its rows are not those of {folder / PROOF}: name the file with --data or --held-out"
        )
    subject = Subject(source, split)
    claim = Claim(
        goal=before.goal,
        on=before.on,
        model=str(Path(model or before.model).resolve()),
        model_fingerprint=before.model_fingerprint,
        data=resolved(rows),
        held_out=None if judging is None else resolved(str(judging)),
        seed=before.seed,
        fields=before.fields,
    )
    say(f"measuring {folder} again: {len(split.proof):,} rows, then its speed...")
    predicted = None if before.speeds is None else before.speeds.predicted_ms
    now = prove_folder(folder, subject, bench(subject, before.on), claim, predicted if same else None)
    if now.speeds is not None and (not same or before.speeds is None):
        write_proof(folder, now)
        rewrite_report(folder, now)
    return Verified(before=before, now=now, differing=differing(before, now))


def resolved(source: str) -> str:
    """A file by its whole path; a data set's name as it is."""
    return str(Path(source).resolve()) if Path(source).exists() else source


def _opened(folder: Path, before: Proof, model: str | Path | None) -> Source:
    """The dense model, where it is now."""
    if model is None and not Path(before.model).is_dir():
        raise InputError(f"{before.model}: is no more where {folder / PROOF} has it: name the model with --model")
    return open_subject(model or before.model)


def _quality(drop: Drop, subject: Subject, goal: Goal) -> Quality:
    first = subject.proof.examples[:1]
    metric = subject.task.score(first, subject.answers(first)).main
    needed = None
    if drop.points < goal.drop < drop.most:  # intervals shrink with the root of the number of rows
        needed = math.ceil(drop.rows * ((drop.most - drop.points) / (goal.drop - drop.points)) ** 2)
    return Quality(
        metric=metric,
        dense=drop.dense,
        small=drop.small,
        drop=drop.points,
        drop_low=drop.low,
        drop_high=drop.high,
        drop_most=drop.most,
        changed=drop.changed,
        rows=drop.rows,
        rows_needed=needed,
    )


def _speeds(
    bench: Bench, encoder: Encoder, small: Callable[..., Tensor], predicted_ms: float | None
) -> tuple[Speeds | None, str | None]:
    """The speeds, or why there are none."""
    try:
        times = bench.beside(small)
    except TooNoisy as error:
        return None, str(error)
    ms, name = times.ms["small"], fastest(times)
    return Speeds(
        ms=ms,
        fp32_ms=times.ms[name],
        fp32_runtime=name,
        plain_ms=times.ms[PLAIN],
        faster=times.ms[name] / ms,
        faster_plain=times.ms[PLAIN] / ms,
        predicted_ms=predicted_ms,
        spread=times.spread,
        lengths=bench.lengths,
    ), None


__all__ = [
    "PROOF",
    "Claim",
    "NotProved",
    "Proof",
    "Quality",
    "Size",
    "Speeds",
    "Verified",
    "open_small",
    "prove",
    "prove_folder",
    "read_proof",
    "size_of",
    "unproved",
    "write_proof",
]
