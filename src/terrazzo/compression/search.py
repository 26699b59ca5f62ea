"""The coefficients that weigh the sites' costs, searched by the loss of the models that they choose.

The error of one site says little about what its loss does to the whole model. So each site's costs are multiplied by a
coefficient, the solver chooses levels by them within the budget, and the caller says how good that model is.

Shapes: S sites, L levels of one site.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from terrazzo.compression.database import Database
from terrazzo.compression.solver import BUCKETS, choose_levels, total
from terrazzo.config import config, from_dict, read_file, to_dict
from terrazzo.errors import InputError
from terrazzo.provenance import write_json_atomic

FORMAT = "terrazzo-search-1"
#: The size that each site keeps, by its name.
Sizes = dict[str, int]
#: What a level keeps, and its error.
Levels = Sequence[tuple[int, float]]


@config
class Tried:
    """A plan that was evaluated.

    Args:
        levels: of each site; price: their sum; loss: the caller's, None where it was not a number.
    """

    levels: tuple[int, ...]
    price: float
    loss: float | None


@config
class SearchOptions:
    """How long to search.

    Args:
        starts: random coefficients before the local search; the plain costs come first.
        changed: share of the coefficients that a local step draws anew; it goes down to one coefficient.
        failures: steps in a row without a better plan after which fewer coefficients are drawn.
        evaluations: of the loss, at most.
        buckets: see `choose_levels`.

    Reference: SPDY (arXiv 2201.13096), section 3.3; ZipLM (arXiv 2302.04089), section 3.2.
    """

    starts: int = 100
    changed: float = 0.1
    failures: int = 100
    evaluations: int = 1000
    buckets: int = BUCKETS

    def __post_init__(self) -> None:
        if not (self.starts >= 0 and 0 < self.changed <= 1 and self.failures >= 1 and self.evaluations >= 1):
            raise InputError("starts from 0, changed within 0 and 1, failures and evaluations from 1")


@config
class Progress:
    """Where a search stands.

    Args:
        drawn: candidates so far; draws: coefficients that a local step draws anew; failed: steps since the last better.
        best: coefficients of the best plan.
    """

    drawn: int = 0
    draws: int
    failed: int = 0
    best: tuple[float, ...]
    tried: tuple[Tried, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search came to.

    Args:
        sizes: of the best plan; tried: every plan that was evaluated, in order.
    """

    sizes: Sizes
    best: Tried
    coefficients: tuple[float, ...]
    tried: tuple[Tried, ...]

    @property
    def frontier(self) -> list[Tried]:
        """The plans that no other beats in price and in loss, the cheapest first."""
        return frontier(self.tried)


def search_plan(
    database: Mapping[str, Levels],
    prices: Mapping[str, Sequence[float]],
    budget: float,
    loss: Callable[[Sizes], float],
    *,
    seed: int,
    options: SearchOptions | None = None,
    state: Path | None = None,
) -> Found:
    """The plan within `budget` of least `loss` that the search meets.

    Args:
        database: for each site the size and the error of its levels; prices: of the same levels.
        loss: of the model with these sizes; no plan is asked for twice. What is not finite never wins.
        state: file that the search is saved in after every better plan and when it ends or is interrupted, and goes on
            from where it exists; the result is that of a search without a break.

    Raises:
        Unreachable: no plan fits the budget.
        InputError: `state` belongs to another search; no plan had a finite loss.
    """
    run = _Search(database, prices, budget, loss, seed, options or SearchOptions(), state)
    try:
        while run.goes_on():
            run.step()
    finally:
        run.save()
    return run.found()


def level_errors(database: Database) -> dict[str, list[tuple[int, float]]]:
    """The sizes and relative errors of a database, as `search_plan` takes them."""
    return {name: [(level.size, level.relative_error) for level in some] for name, some in database.levels.items()}


def frontier(tried: Sequence[Tried]) -> list[Tried]:
    """The plans that no other beats in price and in loss, the cheapest first."""
    kept: list[Tried] = []
    for one in sorted((t for t in tried if t.loss is not None), key=lambda t: (t.price, t.loss)):
        if not kept or _of(one) < _of(kept[-1]):
            kept.append(one)
    return kept


class _Search:
    """The loop's state. Candidate n is drawn from (seed, n) alone, so that a search can go on anywhere."""

    def __init__(
        self,
        database: Mapping[str, Levels],
        prices: Mapping[str, Sequence[float]],
        budget: float,
        loss: Callable[[Sizes], float],
        seed: int,
        options: SearchOptions,
        state: Path | None,
    ) -> None:
        self.sites = list(database)
        if missing := [site for site in self.sites if site not in prices]:
            raise ValueError(f"no prices for {', '.join(missing)}")
        self.sizes_SL = [[size for size, _ in levels] for levels in database.values()]
        self.errors_SL = [np.array([error for _, error in levels], dtype=np.float64) for levels in database.values()]
        self.prices_SL = [np.asarray(prices[site], dtype=np.float64) for site in self.sites]
        self.budget, self.loss, self.seed, self.options, self.state = budget, loss, seed, options, state
        self.problem = self._fingerprint()
        most = max(1, math.ceil(options.changed * len(self.sites)))
        self.progress = Progress(draws=most, best=(1.0,) * len(self.sites))
        if state is not None and state.exists():
            self.progress = self._read(state)
        self.seen = {one.levels: one for one in self.progress.tried}
        self.best = min(self.progress.tried, key=_of, default=None)

    def goes_on(self) -> bool:
        return self.progress.draws > 0 and len(self.progress.tried) < self.options.evaluations

    def step(self) -> None:
        """Try the next candidate: plain costs, then random coefficients, then changes of the best ones."""
        now, starting = self.progress, self.progress.drawn <= self.options.starts
        coefficients = self._candidate()
        one, new = self._tried(coefficients)
        better = new and (self.best is None or _of(one) < _of(self.best))
        failed = 0 if better or starting else now.failed + 1
        exhausted = failed >= self.options.failures
        self.progress = Progress(
            drawn=now.drawn + 1,
            draws=now.draws - exhausted,
            failed=0 if exhausted else failed,
            best=tuple(coefficients.tolist()) if better else now.best,
            tried=(*now.tried, one) if new else now.tried,
        )
        if better:
            self.best = one
            self.save()

    def save(self) -> None:
        if self.state is not None and self.progress.tried:
            values = to_dict(self.progress)
            write_json_atomic(self.state, {"format": FORMAT, "problem": self.problem, "progress": values})

    def found(self) -> Found:
        if self.best is None or self.best.loss is None:
            raise InputError(f"none of {len(self.progress.tried)} plans within {self.budget:g} has a finite loss")
        return Found(
            sizes=self._sizes(self.best.levels),
            best=self.best,
            coefficients=self.progress.best,
            tried=self.progress.tried,
        )

    def _candidate(self) -> np.ndarray:
        now = self.progress
        draw = np.random.default_rng([self.seed, now.drawn])
        if now.drawn == 0:
            return np.ones(len(self.sites))
        if now.drawn <= self.options.starts:
            return draw.random(len(self.sites))
        coefficients = np.array(now.best)
        chosen = draw.choice(len(self.sites), now.draws, replace=False)
        coefficients[chosen] = draw.random(now.draws)
        return coefficients

    def _tried(self, coefficients: np.ndarray) -> tuple[Tried, bool]:
        costs_SL = [weight * errors_L for weight, errors_L in zip(coefficients, self.errors_SL, strict=True)]
        levels = tuple(choose_levels(costs_SL, self.prices_SL, self.budget, self.options.buckets))
        if levels in self.seen:
            return self.seen[levels], False
        loss = float(self.loss(self._sizes(levels)))
        one = Tried(levels=levels, price=total(self.prices_SL, levels), loss=loss if math.isfinite(loss) else None)
        self.seen[levels] = one
        return one, True

    def _sizes(self, levels: Sequence[int]) -> Sizes:
        return {site: sizes[level] for site, sizes, level in zip(self.sites, self.sizes_SL, levels, strict=True)}

    def _fingerprint(self) -> str:
        """Of all that the course of the search depends on, except how long it goes on."""
        options = to_dict(self.options) | {"evaluations": None}
        numbers = [[values.tolist() for values in table] for table in (self.errors_SL, self.prices_SL)]
        what = json.dumps([self.sites, self.sizes_SL, numbers, self.budget, self.seed, options], sort_keys=True)
        return hashlib.sha256(what.encode()).hexdigest()[:16]

    def _read(self, state: Path) -> Progress:
        values = read_file(state)
        if (values.get("format"), values.get("problem")) != (FORMAT, self.problem):
            raise InputError(f"{state}: of another search (sites, prices, budget, seed or options differ): remove it")
        return from_dict(Progress, values.get("progress", {}), str(state))


def _of(one: Tried) -> float:
    return math.inf if one.loss is None else one.loss
