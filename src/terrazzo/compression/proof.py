"""proof.json: every figure that a compressed model claims, how it was measured, and measuring it again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from terrazzo.compression.goal import Goal, rows_to_prove
from terrazzo.compression.rows import read_split
from terrazzo.compression.speed import PLAIN, Bench, Here, fastest
from terrazzo.compression.subject import Drop, Subject, drop_of, open_subject
from terrazzo.compression.timing import TooNoisy
from terrazzo.config import config, from_dict, read_file, to_dict
from terrazzo.errors import InputError, RunError
from terrazzo.nn import Encoder
from terrazzo.provenance import provenance, write_json_atomic
from terrazzo.runtime import Runtime
from terrazzo.runtime.folder import GRAPHS, RuntimeName, is_exported, is_weights, open_runtime, read_record
from terrazzo.runtime.machine import this_machine
from terrazzo.tasks.evaluate import fingerprint
from terrazzo.tasks.model import HEAD, LoadedTask, load_task_head, load_task_model, model_fingerprint, model_folder
from terrazzo.tasks.predict import Predictor

PROOF = "proof.json"
FORMAT: Literal["terrazzo-proof-1"] = "terrazzo-proof-1"
#: Shares by which a factor, and points by which a drop, may differ when they are measured again.
FACTOR_TOLERANCE, POINTS_TOLERANCE = 0.10, 0.1


@config
class Speeds:
    """Milliseconds of one batch, measured side by side.

    Args:
        ms: of the compressed model; fp32_ms: of the dense one in `fp32_runtime`, the fastest fp32 one; plain_ms: of the
            dense one in plain PyTorch, eager over a padded batch.
        faster, faster_plain: their ratios.
        predicted_ms: of the compressed model, before it was made; None where nothing was predicted.
        spread: the largest share by which a time, measured twice, differed; lengths: tokens of the batch's documents.
    """

    ms: float
    fp32_ms: float
    fp32_runtime: RuntimeName
    plain_ms: float
    faster: float
    faster_plain: float
    predicted_ms: float | None = None
    spread: float
    lengths: tuple[int, ...]


@config
class Quality:
    """The task's metric on the proof's rows, times 100.

    Args:
        dense, small: of both models; drop: their difference, within `drop_low` and `drop_high` by a paired 95 %
            bootstrap interval; drop_most: the upper end of the one-sided one, which is held against the goal.
        changed: share of rows that one model has right and the other wrong; rows_needed: that would prove the goal if
            nothing else changed, where these do not.
    """

    metric: str
    dense: float
    small: float
    drop: float
    drop_low: float
    drop_high: float
    drop_most: float
    changed: float | None
    rows: int
    rows_needed: int | None = None


@config
class Size:
    """Bytes of the files that a model runs from: its graph or packed weights, and its head; fp32: 4 a parameter."""

    bytes: int
    fp32_bytes: int
    smaller: float


@config
class Proof:
    """What was proved of a compressed model, and all that is needed to prove it again.

    Args:
        model: folder of the dense model, with its fingerprint; data, held_out: files of rows; rows: fingerprint of
            those that the proof was made on; seed: of their split; fields: columns that are called otherwise.
        speeds: None where the machine was too noisy to prove any.
        proved: whether every part of the goal holds; why: what does not, or could not be shown.
        machine: key of the machine; speeds hold there alone.
    """

    format: Literal["terrazzo-proof-1"] = FORMAT
    goal: Goal
    on: Here
    model: str
    model_fingerprint: str
    data: str
    held_out: str | None
    rows: str
    seed: int
    fields: dict[str, str] = field(default_factory=dict)
    speeds: Speeds | None
    quality: Quality
    size: Size
    proved: bool
    why: tuple[str, ...] = ()
    machine: str
    provenance: dict[str, Any] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """What a person reads."""
        quality, size, speeds = self.quality, self.size, self.speeds
        said = []
        if speeds is not None:
            predicted = "" if speeds.predicted_ms is None else f" (predicted {speeds.predicted_ms:.2f} ms)"
            said += [
                f"speed: {speeds.faster:.2f}x the fastest fp32 runtime ({speeds.fp32_runtime}), "
                f"{speeds.faster_plain:.2f}x plain PyTorch: {speeds.ms:.2f} ms{predicted} against {speeds.fp32_ms:.2f} "
                f"and {speeds.plain_ms:.2f} ms a batch of {len(speeds.lengths)} texts, {sum(speeds.lengths):,} tokens"
            ]
        said += [
            f"drop: {quality.drop:+.2f} points of {quality.metric} ({quality.dense:.2f} to {quality.small:.2f}), at "
            f"most {quality.drop_most:.2f} with 95 % confidence on {quality.rows:,} rows",
            f"size: {size.bytes / 1e6:.1f} MB, {size.smaller:.1f}x smaller than fp32",
            "proved: " + ("yes" if self.proved else f"NO: {'; '.join(self.why)}"),
        ]
        return said


class NotProved(RunError):
    """A model was made that seems to reach the goal, and its proof does not."""


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
    rows = subject.split.proof
    dense_answers = subject.answers(rows)
    small_answers = Predictor(small.model, small.tokenizer, small.max_len, runtime=runtime).predict(rows)
    quality = _quality(drop_of(subject.task, rows, dense_answers, small_answers), subject, claim.goal)
    size = size_of(folder, subject)
    speeds, noisy = _speeds(bench, subject.encoder, runtime, predicted_ms)
    why = unproved(claim.goal, speeds, quality, size) + ([noisy] if noisy else [])
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


def unproved(goal: Goal, speeds: Speeds | None, quality: Quality, size: Size) -> list[str]:
    """The parts of a goal that measured figures do not show."""
    why = []
    if speeds is not None and goal.faster is not None and speeds.faster < goal.faster:
        why.append(f"{speeds.faster:.2f}x as fast, {goal.faster:g}x asked")
    if speeds is not None and goal.under_ms is not None and speeds.ms > goal.under_ms:
        why.append(f"{speeds.ms:.2f} ms, under {goal.under_ms:g} asked")
    if goal.smaller is not None and size.smaller < goal.smaller:
        why.append(f"{size.smaller:.1f}x as small, {goal.smaller:g}x asked")
    if quality.drop > goal.drop:
        why.append(f"{quality.drop:.2f} points lost, {goal.drop:g} allowed")
    elif quality.drop_most > goal.drop:
        needed = "" if quality.rows_needed is None else f"; about {quality.rows_needed:,} rows would tell"
        why.append(
            f"{quality.drop:.2f} points lost, but up to {quality.drop_most:.2f} cannot be ruled out on "
            f"{quality.rows:,} rows, {goal.drop:g} allowed{needed}"
        )
    return why


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


def write_proof(folder: Path, proof: Proof) -> None:
    """Write proof.json whole."""
    write_json_atomic(folder / PROOF, to_dict(proof))


def read_proof(folder: str | Path) -> Proof:
    """The proof of a compressed folder.

    Raises:
        InputError: none there, or damaged; the message names the field.
    """
    file = Path(folder) / PROOF
    if not file.is_file():
        raise InputError(f"{file}: missing: terrazzo compress writes it beside the model that it makes")
    values = read_file(file)
    if values.get("format") != FORMAT:
        raise InputError(f"{file}: format is {values.get('format')!r}, not {FORMAT!r}: compress the model again")
    return from_dict(Proof, values, str(file))


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A proof measured again.

    Args:
        before, now: both proofs; differing: figures that do not agree.
    """

    before: Proof
    now: Proof
    differing: tuple[str, ...]

    def lines(self) -> list[str]:
        """A table of every figure, before and now."""
        rows = [("figure", "proof.json", "now", "")]
        rows += [(n, a, b, "DIFFERS" if n in self.differing else "agrees") for n, a, b in _shown(self.before, self.now)]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


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
        bench: makes what times models.

    Raises:
        InputError: no proof, another machine without `here`, or a model or rows that are not those of the proof.
        TooNoisy: the machine does too much else for speeds to be measured.
    """
    folder, say = Path(folder), log or (lambda line: None)
    before, machine = read_proof(folder), this_machine()
    same = before.machine == machine.key
    if not same and not here:
        raise InputError(
            f"{folder / PROOF}: was proved on {before.machine}; this machine is {machine.key}, and speeds hold on one "
            f"machine alone: terrazzo prove {folder} --here measures them here and writes the proof anew"
        )
    source = open_subject(model or before.model)
    if model_fingerprint(model_folder(source.folder)) != before.model_fingerprint:
        raise InputError(f"{source.folder}: is not the model that {folder} was made from: name it with --model")
    assert source.task is not None
    split = read_split(
        source.task.model.task,
        data or before.data,
        held_out or before.held_out,
        before.goal.drop,
        before.seed,
        before.fields,
    )
    if fingerprint(split.proof) != before.rows:
        raise InputError(
            f"{held_out or data or before.held_out or before.data}: its rows are not those of {folder / PROOF}: name "
            "the file with --data or --held-out"
        )
    subject = Subject(source, split)
    claim = Claim(
        goal=before.goal,
        on=before.on,
        model=str(model or before.model),
        model_fingerprint=before.model_fingerprint,
        data=str(data or before.data),
        held_out=None if held_out is None and before.held_out is None else str(held_out or before.held_out),
        seed=before.seed,
        fields=before.fields,
    )
    say(f"measuring {folder} again: {len(split.proof):,} rows, then its speed...")
    predicted = None if before.speeds is None else before.speeds.predicted_ms
    now = prove_folder(folder, subject, bench(subject, before.on), claim, predicted if same else None)
    if not same:
        write_proof(folder, now)
        return Verified(before=before, now=now, differing=_differing(replace(before, speeds=None), now))
    return Verified(before=before, now=now, differing=_differing(before, now))


def _quality(drop: Drop, subject: Subject, goal: Goal) -> Quality:
    metric = subject.task.score(subject.split.proof[:1], subject.answers(subject.split.proof[:1])).main
    needed = None
    if drop.changed is not None and drop.points < goal.drop < drop.most:
        needed = rows_to_prove(goal.drop - drop.points, drop.changed)
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


def _shown(before: Proof, now: Proof) -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    for name, of, form in _FIGURES:
        one, other = of(before), of(now)
        rows.append((name, _text(one, form), _text(other, form)))
    return rows


def _text(value: float | None, form: str) -> str:
    return "not measured" if value is None else format(value, form)


def _differing(before: Proof, now: Proof) -> tuple[str, ...]:
    found = []
    for name, of, _ in _FIGURES:
        one, other = of(before), of(now)
        if one is None or other is None or name.startswith("ms "):
            continue
        tolerance = POINTS_TOLERANCE if name.startswith(("drop", "metric")) else FACTOR_TOLERANCE * abs(one)
        if abs(one - other) > tolerance:
            found.append(name)
    return tuple(found)


def _speed(name: str) -> Callable[[Proof], float | None]:
    def of(proof: Proof) -> float | None:
        return None if proof.speeds is None else float(getattr(proof.speeds, name))

    return of


_FIGURES: tuple[tuple[str, Callable[[Proof], float | None], str], ...] = (
    ("times the fastest fp32 runtime", _speed("faster"), ".2f"),
    ("times plain PyTorch", _speed("faster_plain"), ".2f"),
    ("ms a batch", _speed("ms"), ".3f"),
    ("metric of the dense model", lambda proof: proof.quality.dense, ".2f"),
    ("metric of the compressed model", lambda proof: proof.quality.small, ".2f"),
    ("drop in points", lambda proof: proof.quality.drop, ".2f"),
    ("drop at most", lambda proof: proof.quality.drop_most, ".2f"),
    ("times as small", lambda proof: proof.size.smaller, ".2f"),
)
