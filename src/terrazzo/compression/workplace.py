"""Where a compression works: the folder that it is to make, and a hidden one beside it, so that it goes on later."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from terrazzo.checkpoint.atomic import usable
from terrazzo.compression.asked import Asked
from terrazzo.compression.latency import LatencyTable
from terrazzo.compression.means import Means
from terrazzo.compression.proof_file import PROOF, read_proof
from terrazzo.compression.report import FRONTIER, REPORT
from terrazzo.compression.timing import Times
from terrazzo.config import from_dict, read_file, to_dict
from terrazzo.errors import InputError
from terrazzo.provenance import versions, write_json_atomic
from terrazzo.runtime.choice import PACKAGES
from terrazzo.runtime.folder import RECORD, is_exported, model_files, read_values

PLAN = "plan.json"
_TIMES, _LOCK = "dense.json", ".lock"
_FORMAT = "terrazzo-work-1"


class Workplace:
    """The hidden folder of one compression.

    Args:
        depends: all that the work depends on beside the model: work of anything else lies beside it.
    """

    def __init__(self, out: Path, depends: Mapping[str, object]) -> None:
        self.out = out.resolve()
        self.root = self.out.with_name(f".{self.out.name}.work")
        what = {**depends, "format": _FORMAT, "versions": versions(PACKAGES)}
        self.folder = self.root / hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]

    @contextmanager
    def held(self) -> Iterator[None]:
        """The folder, of this process alone; what stays empty is removed.

        Raises:
            InputError: another process works for the same folder, or there is no place for it.
        """
        with usable(self.out):
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.root / _LOCK).touch()
        with open(self.root / _LOCK, "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"{self.root}: another process makes {self.out}: wait for it, or stop it first"
                ) from None
            try:
                yield
            finally:
                self._tidy()

    def times(self) -> Times | None:
        """The dense model's, by which an interrupted compression went."""
        file = self.folder / _TIMES
        return from_dict(Times, read_file(file), str(file)) if file.is_file() else None

    def keep_times(self, times: Times) -> None:
        """Remember them, so that what goes on later aims at the same."""
        write_json_atomic(self.folder / _TIMES, to_dict(times))

    def table(self, name: str) -> LatencyTable | None:
        """The latency table, fitted to times of one hour, by which an interrupted compression chose."""
        file = self.folder / f"table-{name}.json"
        return from_dict(LatencyTable, read_file(file), str(file)) if file.is_file() else None

    def keep_table(self, name: str, table: LatencyTable) -> None:
        """Remember it, so that what goes on later chooses the same; a run that makes nothing has no place for it."""
        if self.folder.is_dir():
            write_json_atomic(self.folder / f"table-{name}.json", to_dict(table))

    def remove(self) -> None:
        """All work for the folder, whatever it was for."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _tidy(self) -> None:
        for folder in (self.folder, self.root):
            if folder.is_dir() and not {file.name for file in folder.iterdir()} - {_LOCK}:
                shutil.rmtree(folder)


def unproved_out(out: Path) -> Path:
    """Where a model without its proof goes: not where a proved one lies."""
    try:
        proved = read_proof(out).proved
    except InputError:  # none there, or one that shows nothing
        return out
    return beside(out) if proved else out


def beside(out: Path) -> Path:
    """Where a model goes that must not replace `out`."""
    place = out.resolve()
    return place.with_name(f"{place.name}-unproved")


def depends_of(
    asked: Asked, fingerprint: str, rows: str, means: Means, machine: str, start: str | None = None
) -> dict[str, object]:
    """What the work of a compression depends on.

    Args:
        fingerprint: of the model; rows: of all rows; machine: its key; start: fingerprint of a cut model to start from.
    """
    return {
        **({} if start is None else {"start": start}),
        "model": fingerprint,
        "rows": rows,
        "goal": to_dict(asked.goal),
        "on": to_dict(asked.on),
        "means": to_dict(means),
        "seed": asked.seed,
        "machine": machine,
    }


def refuse_out(out: Path, model: Path) -> None:
    """Refuse a place where no folder can be made, or where something else would be lost.

    Args:
        model: folder of the dense model.

    Raises:
        InputError: with the mend.
    """
    place, model = out.resolve(), model.resolve()
    if model == place or place in model.parents or model in place.parents:
        raise InputError(f"--out {out}: is or holds the model, or lies in it ({model}): name a folder beside it")
    for one in (place, beside(place)):
        if one.exists() and not one.is_dir():
            raise InputError(f"--out {out}: {one} is a file: name another folder")
        if one.is_dir() and (foreign := sorted(_names(one) - _known(one))):
            raise InputError(
                f"--out {out}: {one} would be replaced as a whole, with files that no compression wrote "
                f"({', '.join(foreign[:3])}): name a new or empty folder"
            )
    above = next(folder for folder in place.parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"--out {out}: {above} cannot be written to: name another folder")


def _names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def _known(out: Path) -> set[str]:
    """The files of an earlier compression in `out`."""
    if not (out / PROOF).is_file():
        return set()
    known = {PROOF, PLAN, REPORT, FRONTIER, *(file.name for file in model_files(out))}
    if is_exported(out):
        files = read_values(out / RECORD).get("files")
        known |= {RECORD, *(files if isinstance(files, dict) else ())}
    return known
