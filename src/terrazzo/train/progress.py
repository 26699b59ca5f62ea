"""The line that a person watches while a run goes on: live in a terminal, now and then a plain line in a log."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from terrazzo.train.hooks import Hook, Line
from terrazzo.train.metrics import MetricsLog
from terrazzo.train.run import RunConfig
from terrazzo.train.state import latest_checkpoint
from terrazzo.train.tensorboard import TensorBoardHook
from terrazzo.train.units import duration, percent, short, whole

_BAR, _GAP = 12, "  "
_ETA_LINES = 200


def default_hooks(
    config: RunConfig, console: Console | None = None, *, peak: bool = True
) -> Callable[[Path], Sequence[Hook]]:
    """What a run tells by default: metrics.jsonl, the progress line and, where the config asks for it, TensorBoard.

    The result is called with the run folder once it is open, and goes on where the newest checkpoint there stands.

    Args:
        peak: whether the progress line tells the share of the peak.
    """

    def make(run: Path) -> Sequence[Hook]:
        checkpoint = latest_checkpoint(run)
        step = checkpoint.counters.total_steps if checkpoint else 0
        steps = [stage.budget.steps for stage in config.stages]
        total = sum(s for s in steps if s is not None) if None not in steps else None
        board = [TensorBoardHook(run / "tensorboard", step)] if config.tensorboard else []
        return [MetricsLog(run / "metrics.jsonl", step), *board, ProgressLine(console, total_steps=total, peak=peak)]

    return make


class Average:
    """Exponentially weighted mean of the finite numbers given so far, without the bias towards the start at zero."""

    def __init__(self, keep: float) -> None:
        self._keep, self._sum, self._weight = keep, 0.0, 0.0

    def add(self, number: float) -> None:
        """Take one number in; NaN and infinity are passed over."""
        if math.isfinite(number):
            self._sum = self._keep * self._sum + number
            self._weight = self._keep * self._weight + 1

    @property
    def value(self) -> float:
        """The mean; NaN before the first number."""
        return self._sum / self._weight if self._weight else math.nan


class ProgressLine:
    """Hook that shows step, losses, tokens/s, share of peak FLOPs, padding and the time left.

    Args:
        console: where to; by default standard output.
        every: seconds between plain lines where the console is no terminal.
        total_steps: the number of steps of the run, where the budgets fix it.
        clock: seconds, increasing.
        peak: whether to tell the share of peak FLOPs.
    """

    def __init__(
        self,
        console: Console | None = None,
        every: float = 10.0,
        total_steps: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        peak: bool = True,
    ) -> None:
        self._tell_peak = peak
        self._console, self._every, self._total, self._clock = console or Console(), every, total_steps, clock
        self._loss, self._rate, self._peak = Average(0.9), Average(0.9), Average(0.9)
        self._heldout = math.nan
        self._course: deque[tuple[float, float]] = deque(maxlen=_ETA_LINES)
        self._line: Line | None = None
        self._next_print = -math.inf
        self._bar: tuple[Progress, TaskID] | None = None

    def on_step(self, line: Line) -> None:
        """Redraw the live line, or print a plain one when the last is old enough."""
        self._take(line)
        if self._console.is_terminal:
            progress, task = self._bar = self._bar or self._start_bar()
            progress.update(task, completed=line.get("progress", 0.0), text=self._text(self._room()))
        elif self._clock() >= self._next_print:
            self._print_plain()

    def on_evaluation(self, line: Line) -> None:
        """Print the held-out figures, which stay on screen."""
        self._heldout = line["heldout_loss"]
        text = f"step {whole(line['step'])}: held-out loss {self._heldout:.4f}"
        if "heldout_accuracy" in line:
            text += f", accuracy {percent(line['heldout_accuracy'])}"
        if "metric" in line:
            text += f", {line['metric']} {line['score']:.4f}"
        self.on_message(text)

    def on_message(self, text: str) -> None:
        """Print a line of text, above the live line if there is one."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the last state on screen."""
        if self._bar is not None:
            self._bar[0].stop()
            self._bar = None
        elif self._line is not None:
            self._print_plain()

    def _take(self, line: Line) -> None:
        share = line.get("progress", math.nan)
        if self._course and share < self._course[-1][1]:
            self._course.clear()
        self._course.append((line["seconds"], share))
        self._loss.add(line["loss"])
        self._rate.add(line.get("tokens_per_second", math.nan))
        self._peak.add(_number(line.get("peak_fraction")))
        self._line = line

    def _start_bar(self) -> tuple[Progress, TaskID]:
        columns = BarColumn(_BAR), TextColumn("{task.percentage:>3.0f} %"), TextColumn("{task.fields[text]}")
        progress = Progress(*columns, console=self._console, refresh_per_second=4)
        progress.start()
        return progress, progress.add_task("", total=1.0, text="")

    def _room(self) -> int:
        return self._console.width - _BAR - len(" 100 % ") - 1

    def _print_plain(self) -> None:
        assert self._line is not None
        share = percent(self._line.get("progress", math.nan), 0)
        self.on_message(f"{share:>5}{_GAP}{self._text()}")
        self._line, self._next_print = None, self._clock() + self._every

    def _text(self, width: float = math.inf) -> str:
        """The figures that fit in `width` characters; the less a person misses one, the earlier it goes."""
        assert self._line is not None
        line, loss, left = self._line, self._line["loss"], self._seconds_left()
        total = f"/{whole(self._total)}" if self._total else ""
        pieces = [
            (0, f"step {whole(line['step'])}{total}"),
            (0, f"loss {self._loss.value if math.isfinite(loss) else loss:.3f}"),
            (2, f"held-out {self._heldout:.3f}" if math.isfinite(self._heldout) else ""),
            (3, f"{short(self._rate.value)} tok/s"),
            (4, f"{percent(self._peak.value, 0)} of peak" if self._shows_peak else ""),
            (5, f"{percent(line['padding_saved'], 0)} padding saved" if "padding_saved" in line else ""),
            (1, f"{duration(left)} left" if math.isfinite(left) else ""),
        ]
        pieces = [piece for piece in pieces if piece[1]]
        while len(pieces) > 2 and len(_GAP.join(text for _, text in pieces)) > width:
            pieces.remove(max(pieces))
        return _GAP.join(text for _, text in pieces)

    @property
    def _shows_peak(self) -> bool:
        return self._tell_peak and math.isfinite(self._peak.value)

    def _seconds_left(self) -> float:
        """Time to go at the pace of the last lines, which forgets compilation and warm-up."""
        (then, begun), (now, done) = self._course[0], self._course[-1]
        if len(self._course) == 1:
            then, begun = 0.0, 0.0
        pace = (now - then) / (done - begun) if done > begun else math.nan
        return (1 - done) * pace


def _number(value: float | None) -> float:
    return math.nan if value is None else value
