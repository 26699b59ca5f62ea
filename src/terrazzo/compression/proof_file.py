"""proof.json: every figure that a compressed model claims, and how it was measured."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from terrazzo.compression.goal import Goal
from terrazzo.compression.speed import Here
from terrazzo.config import config, from_dict, read_file, to_dict
from terrazzo.errors import InputError, RunError
from terrazzo.provenance import write_json_atomic
from terrazzo.runtime.folder import RuntimeName

PROOF = "proof.json"
FORMAT: Literal["terrazzo-proof-1"] = "terrazzo-proof-1"


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
            f"size: {size.bytes / 1e6:.1f} MB, {size.smaller:.1f}x as small as fp32",
            "proved: " + ("yes" if self.proved else f"NO: {'; '.join(self.why)}"),
        ]
        return said


class NotProved(RunError):
    """A model was made that seems to reach the goal, and its proof does not."""


def unproved(goal: Goal, speeds: Speeds | None, quality: Quality, size: Size) -> list[str]:
    """The parts of a goal that measured figures do not show."""
    why = []
    if speeds is not None and goal.faster is not None and not speeds.faster >= goal.faster:
        why.append(f"{speeds.faster:.2f}x as fast, {goal.faster:g}x asked")
    if speeds is not None and goal.under_ms is not None and not speeds.ms <= goal.under_ms:
        why.append(f"{speeds.ms:.2f} ms, under {goal.under_ms:g} asked")
    if goal.smaller is not None and not size.smaller >= goal.smaller:
        why.append(f"{size.smaller:.1f}x as small, {goal.smaller:g}x asked")
    if not quality.drop <= goal.drop:
        why.append(f"{quality.drop:.2f} points lost, {goal.drop:g} allowed")
    elif not quality.drop_most <= goal.drop:
        needed = "" if quality.rows_needed is None else f"; about {quality.rows_needed:,} rows would tell"
        why.append(
            f"{quality.drop:.2f} points lost, but up to {quality.drop_most:.2f} cannot be ruled out on "
            f"{quality.rows:,} rows, {goal.drop:g} allowed{needed}"
        )
    return why


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
