"""What was tried and measured: the frontier of accuracy against speed and size, and goals that lie beyond it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field

from terrazzo.compression.goal import Goal
from terrazzo.config import config
from terrazzo.errors import RunError
from terrazzo.runtime import Precision
from terrazzo.runtime.folder import RuntimeName


@config
class Offer:
    """A model that was made and measured.

    Args:
        name: how it was made, in a few words.
        sizes: heads and units that each cut site keeps; bits: of each packed weight.
        predicted_ms, ms: of the timed batch, by the latency table and as measured.
        faster: times as fast as the fastest fp32 runtime; bytes: of the file that holds its weights; smaller: times as
            small as fp32.
        metric: on the rows that choices are made by; drop: points below the dense model there, at most `drop_high` by a
            one-sided 95 % interval.
        trained: whether it learned back after it was cut.
    """

    name: str
    runtime: RuntimeName
    precision: Precision
    sizes: dict[str, int] = field(default_factory=dict)
    bits: dict[str, int] = field(default_factory=dict)
    predicted_ms: float | None = None
    ms: float
    faster: float
    bytes: int
    smaller: float
    metric: float
    drop: float
    drop_high: float
    trained: bool = False

    def meets(self, goal: Goal, spare: float = 0.0) -> bool:
        """Whether it reaches a goal, up to a share `spare` of the speed."""
        return self.fast_enough(goal, spare) and self.small_enough(goal) and self.drop <= goal.drop

    def fast_enough(self, goal: Goal, spare: float = 0.0) -> bool:
        """Whether it reaches the goal's speed, up to a share `spare` of it."""
        fast = goal.faster is None or self.faster >= (1 - spare) * goal.faster
        return fast and (goal.under_ms is None or (1 - spare) * self.ms <= goal.under_ms)

    def small_enough(self, goal: Goal) -> bool:
        """Whether it reaches the goal's size."""
        return goal.smaller is None or self.smaller >= goal.smaller

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.faster:.2f}x as fast ({self.ms:.2f} ms), {self.smaller:.1f}x as small, "
            f"{self.drop:+.2f} points lost on the rows to choose by"
        )


@config
class Sketch:
    """A one-shot model that was not made to run: its predicted speed and its drop on the rows to choose by."""

    faster: float
    drop: float


class GoalUnreachable(RunError):
    """No model that was made reaches the goal.

    Attributes:
        offers: every model that was made; nearest: those that come closest, one a way of giving in.
    """

    def __init__(self, goal: Goal, offers: Sequence[Offer], why: str = "") -> None:
        self.goal, self.offers, self.nearest = goal, tuple(frontier(offers)), tuple(nearest(goal, offers))
        lines = [f"the goal is out of reach: {goal}{f' ({why})' if why else ''}"]
        lines += ["nearest offers:", *(f"  {offer}" for offer in self.nearest)] if self.nearest else []
        lines += ["measured frontier:", *(f"  {offer}" for offer in self.offers)] if self.offers else []
        super().__init__("\n".join(lines))


def frontier(offers: Sequence[Offer]) -> list[Offer]:
    """The offers that no other beats in speed, size and drop at once, the slowest first."""

    def beaten(one: Offer) -> bool:
        return any(
            other.faster >= one.faster
            and other.smaller >= one.smaller
            and other.drop <= one.drop
            and other != one
            and (other.faster, other.smaller, -other.drop) != (one.faster, one.smaller, -one.drop)
            for other in offers
        )

    return sorted((one for one in offers if not beaten(one)), key=lambda one: (one.faster, one.smaller))


def nearest(goal: Goal, offers: Sequence[Offer]) -> list[Offer]:
    """The fastest and the smallest offer within the drop, and the least drop that reaches speed and size."""
    within = [one for one in offers if one.drop <= goal.drop]
    reaching = [one for one in offers if one.fast_enough(goal) and one.small_enough(goal)]
    found: list[Offer] = []
    if within and (goal.faster is not None or goal.under_ms is not None):
        found.append(max(within, key=lambda one: one.faster))
    if within and goal.smaller is not None:
        found.append(max(within, key=lambda one: one.smaller))
    if reaching:
        found.append(min(reaching, key=lambda one: one.drop))
    return list({id(one): one for one in found}.values())
