"""Folders that take their name only when they are whole."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from terrazzo.data.files import sync_folder
from terrazzo.errors import InputError

#: The file that says a folder is ours to replace.
RECORD = "terrazzo.json"
_OF_NAMES = (
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ELOOP,
)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A new folder to fill, which takes the name `path` on leaving the block and vanishes if the block raises.

    Everything in it is flushed to disk first. An older model folder of that name stays whole until the new one replaces
    it, in one step where the file system can exchange two names. SIGTERM ends the process only after what was begun is
    removed, unless the program handles it otherwise.

    Raises:
        InputError: `path` is a file, a folder that holds something else than a model, or a name that cannot be made.
    """
    path = Path(path).resolve()
    with unwound_by_sigterm():
        with usable(path):
            temporary = _begin(path)
        try:
            yield temporary
            _flush(temporary)
            _take_name(temporary, path)
            sync_folder(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def usable(path: str | Path) -> Iterator[None]:
    """Raise InputError in place of the system's errors that lie in a name that the person chose."""
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_NAMES:
            raise
        raise InputError(f"{path}: cannot be made ({error.strerror}): name another folder") from None


@contextmanager
def unwound_by_sigterm() -> Iterator[None]:
    """SIGTERM raises SystemExit in the block, a second one ends the process at once; a program's own handler stays."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def end(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def standing(path: str | Path) -> Path:
    """`path`, or the older folder that an interrupted replacement without an exchange left beside it."""
    path = Path(path)
    previous = _previous(path.resolve())
    return previous if previous.is_dir() and not path.exists() else path


def _begin(path: Path) -> Path:
    """The empty folder that is to become `path`."""
    _refuse_foreign(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    return temporary


def _refuse_foreign(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file; a model is a folder: choose another name")
    if path.is_dir() and any(path.iterdir()) and not (path / RECORD).is_file():
        raise InputError(f"{path}: holds other files and would be replaced as a whole: choose a new or empty folder")


def _remove_leftovers(path: Path) -> None:
    """Temporary folders of processes that died while writing `path`."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        owner = leftover.name.split(".")[-2]
        if owner.isdigit() and (int(owner) == os.getpid() or not _alive(int(owner))):
            shutil.rmtree(leftover)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    for path in (*filter(Path.is_dir, folder.rglob("*")), folder):
        sync_folder(path)


def _take_name(new: Path, path: Path) -> None:
    previous = _previous(path)
    if not path.exists():
        os.rename(new, path)
    elif not _exchange(new, path):
        os.rename(path, previous)
        os.rename(new, path)
    if previous.exists():
        shutil.rmtree(previous)


def _previous(path: Path) -> Path:
    return path.with_name(f".{path.name}.previous")


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step; False where the system or the file system cannot."""
    library = ctypes.CDLL(None, use_errno=True)
    try:
        renameat2 = library.renameat2
    except AttributeError:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(second))
