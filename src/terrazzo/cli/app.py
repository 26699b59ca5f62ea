"""The command line's app, and what it says when something goes wrong."""

from __future__ import annotations

import errno
import os
import sys
from typing import NoReturn

import typer

from terrazzo.errors import InputError, RunError

#: What only the person can mend, by another name or other rights.
_OF_NAMES = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="From a folder of text to an encoder of your own.",
)


def main() -> None:
    """Run the command line: input errors exit with 2, runs that cannot go on with 3, both without a traceback."""
    try:
        app()
    except InputError as error:
        _fail(error, 2)
    except RunError as error:
        _fail(error, 3)
    except BrokenPipeError:  # whoever reads has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        if error.errno in _OF_NAMES and error.filename is not None:
            _fail(InputError(f"{error.filename}: {error.strerror}: name another file or folder"), 2)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _fail(RunError(f"the disk is full ({error}): free some space and start the same command again"), 3)


def _fail(error: Exception, status: int) -> NoReturn:
    rank = int(os.environ.get("RANK", 0))
    # Every rank refuses the same input; what ends a run may be known to one alone.
    if rank == 0 or isinstance(error, RunError):
        print(f"terrazzo{f' (rank {rank})' if rank else ''}: {error}", file=sys.stderr)
    raise SystemExit(status)
