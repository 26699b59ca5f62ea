"""What a paper claims (`paper.toml`), and whether our results bear it out."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from terrazzo.config import config, from_dict, read_file
from terrazzo.errors import InputError

RECIPES = Path(__file__).parent
TIERS = ("smoke", "small", "downstream", "paper")
Tier = Literal["smoke", "small", "downstream", "paper"]
Status = Literal["holds", "holds in direction", "does not hold", "not run"]

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_NAME = r"[A-Za-z_]\w*"
_NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
_CONDITION = re.compile(
    rf"(?P<left>{_NAME})\s*(?P<op>>=|<=|>|<)\s*"
    rf"(?:(?P<factor>{_NUMBER})\s*\*\s*(?P<scaled>{_NAME})|(?P<right>{_NAME})|(?P<number>{_NUMBER}))"
)


@config
class Claim:
    """One claim of a paper, written down before the code.

    Args:
        id: short name.
        where: table, figure or section of the paper.
        paper: the paper's figure, in our words.
        metric: the name in our results of the figure to show beside it.
        condition: what must hold at our scale: `metric >= 1.5`, `metric < other`, `metric <= 0.9 * other`.
        direction: a weaker condition that still shows the claimed direction.
        tier: the tier whose results decide.
        needs: what a run of that tier takes, where we could not run it.
    """

    id: str
    where: str
    paper: str
    metric: str
    condition: str
    direction: str | None = None
    tier: Tier = "small"
    needs: str = ""

    def __post_init__(self) -> None:
        for text in filter(None, (self.condition, self.direction)):
            if not _CONDITION.fullmatch(text.strip()):
                raise InputError(
                    f"claim {self.id}: condition {text!r} is not like 'metric >= 1.5' or 'metric < 0.9 * other'"
                )


@config
class Paper:
    """A paper and what terrazzo takes from it."""

    title: str
    arxiv: str
    slug: str
    rooms: tuple[str, ...]
    takes: str
    claims: tuple[Claim, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A claim held against our results; `value` is the mean of the metric over seeds, `low` and `high` its extremes."""

    status: Status
    why: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int = 0

    def __str__(self) -> str:
        return f"{self.status} ({self.why})" if self.why else self.status

    @property
    def figure(self) -> str:
        """The measured figure with its extremes over seeds, "-" where there is none."""
        if self.value is None:
            return "-"
        spread = f" ({self.low:.4g} to {self.high:.4g}, {self.seeds} seeds)" if self.seeds > 1 else ""
        return f"{self.value:.4g}{spread}"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A folder under `recipes/`."""

    folder: Path
    paper: Paper
    results: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def verdicts(self) -> list[tuple[Claim, Verdict]]:
        """Every claim with its verdict, in the order of `paper.toml`."""
        return [(claim, verdict(claim, self.results.get(claim.tier))) for claim in self.paper.claims]


def read_recipes(folder: Path = RECIPES) -> list[Recipe]:
    """All recipes, by slug."""
    return [read_recipe(path.parent) for path in sorted(folder.glob("*/paper.toml"))]


def read_recipe(folder: Path) -> Recipe:
    """The recipe in `folder` with the results that are there.

    Raises:
        InputError: a `paper.toml` with an unknown key, a slug that is not the folder's name, or two claims of one id.
    """
    source = folder / "paper.toml"
    paper = from_dict(Paper, read_file(source), source=str(source))
    if paper.slug.replace("-", "_") != folder.name:
        raise InputError(f"{source}: slug {paper.slug!r} belongs in the folder {paper.slug.replace('-', '_')}")
    ids = [claim.id for claim in paper.claims]
    if len(set(ids)) < len(ids):
        raise InputError(f"{source}: claim ids must differ, got {ids}")
    paths = {tier: folder / "results" / f"{tier}.json" for tier in TIERS}
    results = {tier: json.loads(path.read_text(encoding="utf-8")) for tier, path in paths.items() if path.exists()}
    return Recipe(folder=folder, paper=paper, results=results)


def verdict(claim: Claim, result: Mapping[str, Any] | None) -> Verdict:
    """Hold `claim` against the mean of the metrics of its tier's `result`, over the seeds that have all it needs.

    Where single seeds do not meet what their mean meets, `why` counts those that do.
    """
    if result is None:
        return Verdict(status="not run", why=claim.needs or f"no {claim.tier} results yet")
    needed = {claim.metric, *_names(claim.condition), *_names(claim.direction or claim.condition)}
    per_seed = [metrics for metrics in result["metrics"].values() if needed <= set(metrics)]
    if not per_seed:
        known = {name for metrics in result["metrics"].values() for name in metrics}
        missing = ", ".join(sorted(needed - known)) or "a seed with all its metrics"
        return Verdict(status="not run", why=f"the {claim.tier} results lack {missing}")
    broken = sorted(name for name in needed if any(metrics[name] is None for metrics in per_seed))
    if broken:
        return Verdict(status="does not hold", why=f"{', '.join(broken)} not finite", seeds=len(per_seed))
    mean = {name: fmean(metrics[name] for metrics in per_seed) for name in needed}
    values = [metrics[claim.metric] for metrics in per_seed]
    status, condition = _status(claim, mean)
    agree = sum(holds(condition, metrics) for metrics in per_seed) if condition else len(per_seed)
    why = f"on average, in {agree} of {len(per_seed)} seeds" if agree < len(per_seed) else ""
    return Verdict(
        status=status, why=why, value=mean[claim.metric], low=min(values), high=max(values), seeds=len(values)
    )


def holds(condition: str, metrics: Mapping[str, float]) -> bool:
    """Whether `metrics` satisfy `condition`."""
    match = _CONDITION.fullmatch(condition.strip())
    assert match, condition
    if match["number"]:
        right = float(match["number"])
    else:
        right = float(match["factor"] or 1) * metrics[match["scaled"] or match["right"]]
    return _OPERATORS[match["op"]](metrics[match["left"]], right)


def _status(claim: Claim, mean: Mapping[str, float]) -> tuple[Status, str | None]:
    """The status and the condition that was met."""
    if holds(claim.condition, mean):
        return "holds", claim.condition
    if claim.direction and holds(claim.direction, mean):
        return "holds in direction", claim.direction
    return "does not hold", None


def _names(condition: str) -> list[str]:
    match = _CONDITION.fullmatch(condition.strip())
    assert match, condition
    return [name for name in (match["left"], match["scaled"], match["right"]) if name]
