"""The run folder: begun, resumed, finished, and what can go wrong with it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from torch import nn

from terrazzo.config import from_dict, to_dict
from terrazzo.errors import InputError, RunError
from terrazzo.provenance import provenance, write_json_atomic
from terrazzo.train.distributed import Ranks
from terrazzo.train.run import RunConfig
from terrazzo.train.state import Checkpoint, latest_checkpoint, remove_unfinished
from terrazzo.train.workload import Workload

if TYPE_CHECKING:
    from terrazzo.train.loop import Session

#: Fields that may differ when a run is resumed: they change neither the stream nor the weights' course.
FREE_FIELDS = ("data", "out", "threads", "checkpoint_every", "keep", "price_per_hour", "tensorboard", "distributed")


def check_run(config: RunConfig, workload: Workload, resume: bool) -> tuple[dict[str, Any], Checkpoint | None]:
    """The record of the run that `config` means, and the checkpoint to go on from; nothing is written yet.

    Raises:
        InputError: the folder holds another run, or resuming with another config or other data.
    """
    run = Path(config.out)
    record = {
        "format": "terrazzo-run-1",
        "config": to_dict(config),
        "workload": to_dict(workload.describe()),
        "data_fingerprint": workload.fingerprint,
        "price_per_hour": config.price_per_hour,
    }
    if resume:
        check_same_run(run, record)
        return record, latest_checkpoint(run)
    if run.exists() and not run.is_dir():
        raise InputError(f"{run} is a file: choose another --out")
    if run.exists() and any(not path.name.startswith(".") for path in run.iterdir()):
        if (run / "run.json").is_file():
            raise InputError(f"{run} holds a run: choose another --out, or go on with --resume")
        raise InputError(f"{run} holds other files: choose another --out")
    return record, None


@contextlib.contextmanager
def begun(run: Path, record: dict[str, Any], ranks: Ranks) -> Iterator[dict[str, Any]]:
    """The run folder with its run.json, held by this run alone, once no rank has anything left to refuse.

    Yields:
        The provenance that the run's models carry.

    Raises:
        InputError: the folder cannot be made, or another process is at work in it.
    """
    made = provenance()
    with contextlib.ExitStack() as stack:
        ranks.barrier()
        if ranks.is_main:
            try:
                run.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise InputError(f"{run}: cannot be made ({error.strerror}): choose another --out") from None
            _lock(stack.enter_context(open(run / ".lock", "a")), run)
            remove_unfinished(run)
            write_json_atomic(run / "run.json", {**record, "provenance": made, "world_size": ranks.world_size})
        ranks.barrier()
        yield {"run": record, **made}


def _lock(file: TextIO, run: Path) -> None:
    """Hold `file` until it is closed or the process ends."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{run}: another process is at work on this run: wait for it, or stop it first") from None


def read_run(run: Path) -> dict[str, Any]:
    """The record of a run.

    Raises:
        InputError: the folder is not a run folder.
    """
    file = run / "run.json"
    if not file.is_file():
        raise InputError(f"{run}: not a run folder (no run.json)")
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file}: does not parse: {error}") from None
    if not (isinstance(record, dict) and isinstance(record.get("config"), dict)):
        raise InputError(f"{file}: damaged: it holds no config; restore it from a copy, or begin a new run")
    return record


def check_same_run(run: Path, record: dict[str, Any]) -> None:
    """Refuse to resume a run under another config or on other data.

    Raises:
        InputError: naming the first field that differs.
    """
    before = read_run(run)
    if before.get("data_fingerprint") != record["data_fingerprint"]:
        raise InputError(
            f"{record['config']['data']}: the data differs from what {run} was trained on (another tokenizer or other "
            "documents): resume with the original data folder, or begin a new run with --out"
        )
    begun_with = to_dict(from_dict(RunConfig, before["config"], str(run / "run.json")))
    for name, value in record["config"].items():
        if name not in FREE_FIELDS and (old := begun_with[name]) != value:
            raise InputError(
                f"{run} was begun with {first_difference(name, old, value)}; resume it with the same value"
            )


def first_difference(path: str, old: Any, new: Any) -> str:
    """Where two plain values differ first, in words: `stages.0.seed = 1, not 2`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *new]:
            if old.get(key) != new.get(key):
                return first_difference(f"{path}.{key}", old.get(key), new.get(key))
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (a, b) in enumerate(zip(old, new, strict=True)):
            if a != b:
                return first_difference(f"{path}.{index}", a, b)
    return f"{path} = {old!r}, not {new!r}"


def finish_run(session: Session, model: nn.Module) -> Path:
    """Write what the workload leaves of the final model, on one rank."""
    if session.ranks.is_main:
        counters = session.counters
        done = {"steps": counters.total_steps, "tokens": counters.tokens, "seconds": counters.seconds}
        session.workload.finish(session.run, model, {**session.provenance, "trained": done})
    session.ranks.barrier()
    return session.run / "model"


@contextlib.contextmanager
def disk_errors(run: Path) -> Iterator[None]:
    """Say what a full disk means for the run."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunError(
            f"{run}: the disk is full ({error}). The last checkpoint is intact: free some space, or lower `keep`, "
            "and start the same command again (pretrain: with --resume)"
        ) from error
