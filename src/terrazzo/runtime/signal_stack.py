"""The stack on which a thread handles signals, kept from libraries that put their own there and free it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """stack_t of sigaltstack(2) on Linux."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def own_signal_stack() -> Iterator[None]:
    """Leave this thread's alternate signal stack as it was.

    Compiling a graph, OpenVINO gives the thread a stack of its own and frees it together with the graph, on whatever
    thread that happens. Python handles signals on the alternate stack, so that the next SIGTERM would end the process
    with a segmentation fault instead of being handled.
    """
    if sys.platform != "linux":
        yield
        return
    sigaltstack = ctypes.CDLL(None, use_errno=True).sigaltstack
    before = _Stack()
    sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        if sigaltstack(ctypes.byref(before), None):
            raise OSError(ctypes.get_errno(), "the signal stack of this thread could not be put back")
