"""What was timed, and results/TIER.md: our ratios, and in columns of their own the authors' on their machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median, quantiles
from typing import Literal

from recipes.bytetransformer.mixes import PUBLISHED
from recipes.bytetransformer.speed import Spent
from scripts.docs.markdown import table as markdown

Clock = Literal["cpu", "wall"]
_NOTE = """
Time padded over time without padding: median (first to third quartile) of {batches} batches over all seeds, by {clock}.
*Work* is the share of the padded operations that real tokens need; its inverse is the gain if time followed operations.
The published columns are the authors' milliseconds divided: PyTorch padded over ByteTransformer, and FasterTransformer
padded over its padding-free self (A100, fp16, github.com/bytedance/ByteTransformer). They stand beside ours, measured
elsewhere on another engine.
"""
_CLOCKS = {"cpu": "CPU time of one thread", "wall": "wall time"}


@dataclass
class Cell:
    """One padded length and one share: what every arm took on each batch, and how much of the work is real."""

    longest: int
    share: float
    spent: dict[str, list[Spent]] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    flop_shares: list[float] = field(default_factory=list)

    def ratios(self, above: str, below: str, clock: Clock) -> list[float]:
        """Time of one arm over another's, for each batch."""
        return [a / b for a, b in zip(self.seconds(above, clock), self.seconds(below, clock), strict=True)]

    def seconds(self, arm: str, clock: Clock) -> list[float]:
        """Time of one arm, for each batch."""
        return [spent.cpu if clock == "cpu" else spent.wall for spent in self.spent[arm]]

    def rates(self, arm: str, clock: Clock) -> list[float]:
        """Real tokens a second, for each batch."""
        return [tokens / seconds for tokens, seconds in zip(self.tokens, self.seconds(arm, clock), strict=True)]


def pairs(cell: Cell) -> list[tuple[str, str]]:
    """Each arm that pads, with the one of the same engine that does not; transformers' with ours."""
    found = [("padded", "packed"), ("transformers", "packed"), ("openvino_padded", "openvino")]
    return [pair for pair in found if pair[0] in cell.spent]


def table(cells: Sequence[Cell], clock: Clock) -> str:
    """One line a padded length and share, over all seeds."""
    arms = pairs(cells[0])
    header = [
        "longest",
        "average / longest",
        "work",
        "packed, real tokens/s",
        *(f"{above} / {below}" for above, below in arms),
    ]
    header += ["published PyTorch / ByteTransformer", "published FasterTransformer, padded / padding-free"]
    keys = sorted({(cell.longest, cell.share) for cell in cells})
    lines = [_line([cell for cell in cells if (cell.longest, cell.share) == key], arms, clock) for key in keys]
    batches = sum(len(cell.tokens) for cell in cells if (cell.longest, cell.share) == keys[0])
    return markdown(header, lines) + "\n" + _NOTE.format(batches=batches, clock=_CLOCKS[clock])


def _line(cells: Sequence[Cell], arms: Sequence[tuple[str, str]], clock: Clock) -> list[str]:
    longest, share = cells[0].longest, cells[0].share
    work = fmean(value for cell in cells for value in cell.flop_shares)
    rate = median(value for cell in cells for value in cell.rates("packed", clock))
    ratios = [_spread([value for cell in cells for value in cell.ratios(*arm, clock)]) for arm in arms]
    published = ("", "")
    if share == 0.6 and longest in PUBLISHED:
        pytorch, faster_padded, faster, byte = PUBLISHED[longest]
        published = (f"{pytorch / byte:.2f}", f"{faster_padded / faster:.2f}")
    return [str(longest), f"{share:g}", f"{work:.2f}", f"{rate:,.0f}", *ratios, *published]


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.2f}"
    first, middle, third = quantiles(values, n=4, method="inclusive")
    return f"{middle:.2f} ({first:.2f} to {third:.2f})"
