"""Two training loops that take turns in one process, so that both meet the same machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field


@dataclass
class Spent:
    """What each of a side's chunks of steps took."""

    cpu_seconds: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


class Turns:
    """Lets one of several loops run at a time, each for `chunk` steps, in the order of `names`.

    A loop calls `wait` before its first step and `stepped` after every step, from a thread of its own.
    """

    def __init__(self, names: Sequence[str], chunk: int) -> None:
        self.chunk, self.waiting = chunk, list(names)
        self.spent = {name: Spent() for name in names}
        self.steps = dict.fromkeys(names, 0)
        self.changed = threading.Condition()

    def wait(self, name: str) -> None:
        """Return once it is this loop's turn, and start its clocks."""
        with self.changed:
            self.changed.wait_for(lambda: self.waiting[0] == name)
        self.began = time.process_time(), time.perf_counter()

    def stepped(self, name: str) -> None:
        """Count a step; after the last of a chunk hand over, and return at the next turn."""
        self.steps[name] += 1
        if self.steps[name] % self.chunk:
            return
        self.spent[name].cpu_seconds.append(time.process_time() - self.began[0])
        self.spent[name].seconds.append(time.perf_counter() - self.began[1])
        with self.changed:
            self.waiting.append(self.waiting.pop(0))
            self.changed.notify_all()
        self.wait(name)

    def leave(self, name: str) -> None:
        """Let the others go on without this loop."""
        with self.changed:
            self.waiting.remove(name)
            self.changed.notify_all()


def alternate(loops: Mapping[str, Callable[[Turns], object]], chunk: int) -> dict[str, Spent]:
    """Run loops to their ends in turns of `chunk` steps.

    A loop's last chunk must be complete: its number of steps is a multiple of `chunk`.

    Raises:
        Exception: what a loop raised, once the others have come to their ends.
    """
    turns = Turns(list(loops), chunk)

    def run(name: str, loop: Callable[[Turns], object]) -> None:
        try:
            loop(turns)
        finally:
            turns.leave(name)

    with ThreadPoolExecutor(len(loops)) as pool:
        for done in [pool.submit(run, name, loop) for name, loop in loops.items()]:
            done.result()
    return turns.spent
