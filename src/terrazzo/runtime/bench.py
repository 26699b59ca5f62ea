"""How fast, how large and how exact runtimes are on this machine, each in a process of its own.

Shapes: B texts, D width.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from terrazzo.config import config
from terrazzo.errors import RunError
from terrazzo.runtime.contract import Precision

#: Texts whose latency a round measures one by one.
SINGLES = 25
#: Mean cosine to fp32 from which a runtime computes the same, and from which it is close enough for int8.
LOSSLESS, CLOSE = 0.9999, 0.995
#: Seconds that a worker has to end by itself.
_PATIENCE = 10.0


@config
class Figures:
    """What one runtime at one precision came to.

    Args:
        texts_per_second: median over rounds, between the slowest and the fastest.
        p50_ms, p95_ms: of one text alone.
        memory_bytes: largest resident size of its process.
        start_seconds: from starting the process to its first vector.
        cosine_mean, cosine_min: to PyTorch in fp32, over texts that calibration has not seen.
    """

    runtime: str
    precision: Precision
    texts_per_second: float
    slowest: float
    fastest: float
    p50_ms: float
    p95_ms: float
    memory_bytes: int
    start_seconds: float
    cosine_mean: float
    cosine_min: float
    batch_tokens: int
    streams: int

    @property
    def name(self) -> str:
        return f"{self.runtime} {self.precision}"


class Worker:
    """A process that answers requests, each a line of JSON, with a line of JSON."""

    def __init__(self, command: Sequence[str]) -> None:
        self.name, self._began = command[-1], time.perf_counter()
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # open as long as the process
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, encoding="utf-8"
        )

    @property
    def age(self) -> float:
        """Seconds since it was started."""
        return time.perf_counter() - self._began

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            RunError: the process has ended; the last line that it wrote to its standard error says why.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        line = ""
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            pass  # said below, with its reason
        if not line:
            self._process.wait()
            self._errors.seek(0)
            last = self._errors.read().strip().splitlines()[-1:] or [f"status {self._process.returncode}"]
            raise RunError(f"{self.name}: its process ended: {last[0]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


class Contender:
    """An exported folder in its own process, and what was measured of it."""

    def __init__(self, runtime: str, precision: Precision, command: Sequence[str]) -> None:
        self.runtime, self.precision, self.worker = runtime, precision, Worker(command)
        self.facts: dict[str, Any] = {}
        self.seconds: list[float] = []
        self.alone: list[float] = []
        self.vectors_BD = np.zeros((0, 0))

    @property
    def name(self) -> str:
        return f"{self.runtime} {self.precision}"

    def start(self) -> None:
        """Wait for the first vector."""
        self.facts = self.worker.ask(do="start")
        self.facts["start_seconds"] = self.worker.age

    def turn(self, number: int) -> None:
        """Run all texts together and some alone; the first turn, number 0, only warms up."""
        seen = self.worker.ask(do="run", singles=SINGLES, turn=number)
        if number:
            self.seconds.append(seen["seconds"])
            self.alone += seen["alone"]

    def end(self, judged: int) -> None:
        """Vectors to compare, of so many texts at the end, and memory."""
        seen = self.worker.ask(do="end", judged=judged)
        self.facts["memory_bytes"], self.vectors_BD = seen["memory_bytes"], np.asarray(seen["vectors"])

    def figures(self, reference_BD: np.ndarray) -> Figures:
        norms_B = np.linalg.norm(self.vectors_BD, axis=1) * np.linalg.norm(reference_BD, axis=1)
        cosines_B = (self.vectors_BD * reference_BD).sum(1) / np.maximum(norms_B, 1e-30)
        rates = self.facts["texts"] / np.asarray(self.seconds)
        p50, p95 = np.percentile(np.asarray(self.alone) * 1e3, [50, 95])
        return Figures(
            runtime=self.runtime,
            precision=self.precision,
            texts_per_second=float(np.median(rates)),
            slowest=float(rates.min()),
            fastest=float(rates.max()),
            p50_ms=float(p50),
            p95_ms=float(p95),
            cosine_mean=float(cosines_B.mean()),
            cosine_min=float(cosines_B.min()),
            **{name: self.facts[name] for name in ("memory_bytes", "start_seconds", "batch_tokens", "streams")},
        )


def measure(
    folders: Mapping[tuple[str, Precision], Path], worker: Sequence[str], judged: int, rounds: int
) -> tuple[list[Figures], dict[str, str]]:
    """Measure exported folders in rounds that take turns; the fastest first, and those that failed with the reason.

    Args:
        folders: of each runtime and precision; PyTorch in fp32 is among them, for it is what others are compared with.
        worker: the command that answers for a folder, whose name follows it.
        judged: how many texts, counted from the end, agreement is measured on.

    Raises:
        RunError: PyTorch in fp32 failed.
    """
    failed: dict[str, str] = {}
    running: list[Contender] = []

    def each(contenders: Sequence[Contender], do: Callable[..., None], *arguments: int) -> None:
        for contender in list(contenders):
            try:
                do(contender, *arguments)
            except RunError as error:
                failed[contender.name] = str(error)
                running.remove(contender)
                contender.worker.close()

    try:
        for (runtime, precision), folder in folders.items():
            contender = Contender(runtime, precision, [*worker, str(folder)])
            running.append(contender)
            each([contender], Contender.start)  # before the next one starts, which would slow it
        for number in range(rounds + 1):
            each(running, Contender.turn, number)
        each(running, Contender.end, judged)
    finally:
        for contender in running:
            contender.worker.close()
    exact = [contender for contender in running if (contender.runtime, contender.precision) == ("torch", "fp32")]
    if not exact:
        raise RunError(f"PyTorch in fp32 did not run, so nothing can be compared with it: {failed}")
    figures = [contender.figures(exact[0].vectors_BD) for contender in running]
    return sorted(figures, key=lambda one: -one.texts_per_second), failed


def best(figures: Sequence[Figures], cosine: float = CLOSE) -> Figures | None:
    """The fastest of those whose mean cosine to fp32 is at least `cosine`."""
    return max((f for f in figures if f.cosine_mean >= cosine), key=lambda f: f.texts_per_second, default=None)


def recommendation(figures: Sequence[Figures], model: str, texts: str) -> list[str]:
    """What to type for the fastest of all that are close to fp32, and for the fastest that computes the same; where the
    next one's rounds overlap with its, that the two cannot be told apart.
    """
    said = []
    for figure in dict.fromkeys(filter(None, (best(figures), best(figures, LOSSLESS)))):
        calibrate = f" --calibrate {texts}" if figure.precision == "int8" else ""
        exact = figure.cosine_mean >= LOSSLESS
        what = "fastest that computes the same" if exact else "fastest"
        said.append(
            f"{what}: {figure.name}, {figure.texts_per_second:,.0f} texts/s, cosine {figure.cosine_mean:.4f}: "
            f"terrazzo export {model} --out DIR --runtime {figure.runtime} --precision {figure.precision}{calibrate}"
        )
        next_best = best([other for other in figures if other is not figure], LOSSLESS if exact else CLOSE)
        if next_best is not None and next_best.fastest >= figure.slowest:
            said.append(f"{figure.name} and {next_best.name} cannot be told apart here; more --rounds")
    return said
