"""The queue in front of an encoder, and the threads that run it."""

from __future__ import annotations


class QueueFull(RuntimeError):
    """Too much is waiting: come back after `retry_after` seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"the queue is full; come back in {retry_after:.0f} s")
        self.retry_after = retry_after


class Draining(RuntimeError):
    """The server is about to stop and takes nothing new."""
