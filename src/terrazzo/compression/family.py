"""Several speeds of one model in one run, each a folder with its proof; every faster one starts from the one before it.

Reference: ZipLM (arXiv 2302.04089), section 4: a family of models for several speed-ups from one gradual run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from terrazzo.compression.asked import Asked, asked_for
from terrazzo.compression.candidates import Log
from terrazzo.compression.family_report import write_family_report
from terrazzo.compression.goal import Goal
from terrazzo.compression.ground import Ground, Start, start_of
from terrazzo.compression.offers import GoalUnreachable
from terrazzo.compression.pipeline import Compression
from terrazzo.compression.proof import NotProved, Proof, read_proof, unproved
from terrazzo.compression.proof_file import PROOF
from terrazzo.compression.report import REPORT
from terrazzo.compression.speed import Bench, Here
from terrazzo.compression.subject import Subject
from terrazzo.compression.workplace import refuse_out
from terrazzo.errors import InputError

#: Names of members, and of all that a compression of one leaves beside it.
_MEMBER = re.compile(r"[0-9.e+]+x")
_LEFT = re.compile(rf"{_MEMBER.pattern}-unproved|\.{_MEMBER.pattern}(\.work|(-unproved)?\.([0-9]+\.tmp|previous))")


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a family came to.

    Args:
        folder: holds a folder for each member, named by its speed (`4x`), and a page about all.
        proofs: of the members that are proved; missed: why others were not reached or not proved; both by their names.
    """

    folder: Path
    proofs: Mapping[str, Proof]
    missed: Mapping[str, str]


def compress_family(
    model: str | Path,
    data: str | Path,
    factors: Sequence[float],
    out: str | Path = "compressed",
    *,
    drop: float = 1.0,
    smaller: float | None = None,
    held_out: str | Path | None = None,
    texts: str | Path | None = None,
    on: Here | None = None,
    effort: str = "minutes",
    fields: Mapping[str, str] | None = None,
    seed: int = 0,
    dry_run: bool = False,
    log: Log | None = None,
    bench: Callable[[Subject, Here], Bench] = Bench,
) -> Family | None:
    """Make `out/2x`, `out/4x`, ...: the model at several speeds, rows, times and statistics shared.

    A member that lies in `out` and was proved for the same goal on the same rows and machine is not made again,
    whatever effort or texts it was made with.

    Args:
        factors: times as fast as the fastest fp32 runtime, in any order; drop, smaller: asked of each; the others as in
            `compress`.

    Returns:
        None for a dry run. What was not reached or not proved is in `missed`; beyond a speed that is out of reach
        nothing faster is tried.

    Raises:
        InputError: as `compress`; factors that six digits do not tell apart; files in `out` that are none of a
            family's.
        TooNoisy: the machine does too much else for a plan to be made.
    """
    folder, say = Path(out), log or (lambda line: None)
    goals = {f"{factor:g}x": Goal(faster=factor, drop=drop, smaller=smaller) for factor in sorted(factors)}
    if not goals:
        raise InputError("a family of no speeds: give some, as 2,4,8")
    if len(goals) < len(factors):
        given = ", ".join(map(str, factors))
        raise InputError(f"factors {given}: two of them would be one folder ({', '.join(goals)}): give each once")
    first = asked_for(
        model, data, next(iter(goals.values())), folder / next(iter(goals)), held_out, on, effort, fields, seed, texts
    )
    _refuse_foreign(folder)
    ground = Ground(first, bench)
    asked = {name: replace(first, goal=goal, out=folder / name) for name, goal in goals.items()}
    for one in asked.values():
        refuse_out(one.out, ground.subject.source.folder)
    if dry_run:
        for number, one in enumerate(asked.values()):
            Compression(one, say, ground).run(dry_run=True, briefly=number > 0)
        return None
    proofs, missed = _made(asked, ground, say)
    page = write_family_report(folder, _with_others(folder, proofs, first, ground), missed)
    say(f"report    {page}")
    return Family(folder=folder, proofs=proofs, missed=missed)


def _made(asked: Mapping[str, Asked], ground: Ground, log: Log) -> tuple[dict[str, Proof], dict[str, str]]:
    proofs: dict[str, Proof] = {}
    missed: dict[str, str] = {}
    start: Start | None = None
    beyond: str | None = None
    for name, one in asked.items():
        kept = _kept(one, ground)
        if kept is not None and not kept.proved:
            missed[name] = f"made before, its speed withheld on a noisy machine: terrazzo prove {one.out}"
            continue
        if kept is not None:
            log(f"kept      {one.out}: made and proved before")
        elif beyond is not None:
            missed[name] = f"not tried, because {beyond} is out of reach"
            continue
        try:
            proofs[name] = kept or _one(one, ground, start, log)
            start = start_of(one.out) or start
        except GoalUnreachable as error:
            log("\n".join(f"          {line}" for line in str(error).splitlines()))
            missed[name], beyond = str(error).splitlines()[0], name
        except NotProved as error:
            log(f"          {error}")
            missed[name] = str(error)
    return proofs, missed


def _one(asked: Asked, ground: Ground, start: Start | None, log: Log) -> Proof:
    done = Compression(asked, log, ground, start).run(dry_run=False)
    assert done is not None
    return done.proof


def _kept(asked: Asked, ground: Ground) -> Proof | None:
    """The proof of a member that was made for the same before and holds, or lacks nothing but a quiet machine; one that
    cannot be read shows nothing."""
    proof = _readable(asked.out)
    same = proof is not None and proof.goal == asked.goal and _comparable(proof, asked, ground)
    return proof if proof is not None and same and (proof.proved or _only_noise(proof)) else None


def _readable(folder: Path) -> Proof | None:
    try:
        return read_proof(folder)
    except InputError:
        return None


def _comparable(proof: Proof, asked: Asked, ground: Ground) -> bool:
    """Whether a proof is of the same model on the same rows and machine."""
    return (proof.on, proof.seed, proof.model_fingerprint, proof.rows, proof.machine) == (
        asked.on,
        asked.seed,
        ground.fingerprint,
        ground.split.fingerprint,
        ground.bench.machine.key,
    )


def _with_others(folder: Path, proofs: Mapping[str, Proof], asked: Asked, ground: Ground) -> dict[str, Proof]:
    """The members that a call made and the proved ones of earlier calls that compare with them, the slowest first."""
    found = dict(proofs)
    for one in folder.iterdir():
        proof = _readable(one) if _MEMBER.fullmatch(one.name) else None
        if proof is None or not proof.proved or proof.goal.drop != asked.goal.drop:
            continue
        if _comparable(proof, asked, ground):
            found.setdefault(one.name, proof)
    return dict(sorted(found.items(), key=lambda item: item[1].goal.faster or 0.0))


def _only_noise(proof: Proof) -> bool:
    """Whether all that is missing are speeds."""
    return proof.speeds is None and not unproved(proof.goal, None, proof.quality, proof.size)


def members(folder: Path) -> list[Path]:
    """The members of a family in a folder, the slowest first; none where it is no family.

    What could not be proved and lies beside a proved member is none.
    """
    if not folder.is_dir() or (folder / PROOF).is_file():
        return []
    found = [one for one in folder.iterdir() if _MEMBER.fullmatch(one.name) and (one / PROOF).is_file()]
    return sorted(found, key=lambda one: (read_proof(one).goal.faster or 0.0, one.name))


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder}: is a file: name a folder")
    names = {one.name for one in folder.iterdir()} if folder.is_dir() else set()
    foreign = sorted(name for name in names - {REPORT} if not (_MEMBER.fullmatch(name) or _LEFT.fullmatch(name)))
    if foreign:
        raise InputError(
            f"--out {folder}: holds files that no family of models has ({', '.join(foreign[:3])}): name a new or empty "
            "folder"
        )
