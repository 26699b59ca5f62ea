"""The search finds coefficients that the errors alone do not tell, asks for no plan twice and goes on after a break."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch

from terrazzo.compression import stitch
from terrazzo.compression.database import Database, Level, encoder_fingerprint
from terrazzo.compression.search import SearchOptions, Tried, frontier, level_errors, search_plan
from terrazzo.compression.sites import sites
from terrazzo.compression.solver import Unreachable
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, bert

SITES, SIZES = [f"units.{layer}" for layer in range(5)], (8, 6, 4, 2, 0)
DATABASE = {site: [(size, (1 - size / 8) ** 2) for size in SIZES] for site in SITES}
PRICES = {site: [float(size) for size in SIZES] for site in SITES}
#: What each site's error does to the loss; the errors of all sites are alike.
WEIGHTS = dict(zip(SITES, (0.1, 1.0, 0.35, 0.12, 0.6), strict=True))
OPTIONS = SearchOptions(starts=10, failures=60, changed=0.4, buckets=18)
BUDGET = 18.0


class Loss:
    """The weighted errors of a plan, counting what it was asked for; it can break off."""

    def __init__(self, most=10_000) -> None:
        self.asked, self.most = [], most

    def __call__(self, sizes):
        if len(self.asked) == self.most:
            raise KeyboardInterrupt
        self.asked.append(tuple(sizes.values()))
        return sum(WEIGHTS[site] * (1 - size / 8) ** 2 for site, size in sizes.items())


def found(loss, state=None, seed=0, **fields):
    options = OPTIONS if not fields else SearchOptions(**{"starts": 10, "failures": 60, "buckets": 18} | fields)
    return search_plan(DATABASE, PRICES, BUDGET, loss, seed=seed, options=options, state=state)


def test_the_best_of_all_plans_is_found_though_the_errors_do_not_tell_it() -> None:
    loss, plain = Loss(), Loss()
    result = found(loss)
    everything = [
        plain(dict(zip(SITES, sizes, strict=True)))
        for sizes in itertools.product(SIZES, repeat=5)
        if sum(sizes) <= BUDGET
    ]
    assert result.best.loss == pytest.approx(min(everything), rel=1e-12)
    assert result.tried[0].loss > 1.5 * result.best.loss, "plain costs come first, and are not the answer"
    assert len(set(loss.asked)) == len(loss.asked) == len(result.tried), "no plan twice"
    assert Loss()(result.sizes) == result.best.loss
    assert all(one.price <= BUDGET for one in result.tried)


def test_local_steps_get_beyond_the_random_starts() -> None:
    alone = found(Loss(), starts=3, evaluations=4)
    assert found(Loss(), starts=3, changed=0.4).best.loss < alone.best.loss


def test_a_broken_search_goes_on_as_if_it_had_not_been(tmp_path) -> None:
    whole, state = found(Loss()), tmp_path / "search.json"
    for breaks in (1, 4, 5):
        with pytest.raises(KeyboardInterrupt):
            found(Loss(breaks), state)
    resumed = Loss()
    assert found(resumed, state) == whole
    assert len(resumed.asked) == len(whole.tried) - 10, "what was evaluated before is not asked for again"
    nothing = Loss(0)
    assert found(nothing, state) == whole


def test_the_seed_decides() -> None:
    assert found(Loss(), seed=1) == found(Loss(), seed=1)
    assert found(Loss(), seed=1).coefficients != found(Loss(), seed=2).coefficients


def test_evaluations_are_a_limit_and_more_of_them_go_on(tmp_path) -> None:
    state = tmp_path / "search.json"
    short = found(Loss(), state, evaluations=6)
    assert len(short.tried) == 6
    longer = found(Loss(), state, evaluations=9)
    assert longer.tried[:6] == short.tried and len(longer.tried) == 9


def test_a_state_of_another_search_is_refused(tmp_path) -> None:
    state = tmp_path / "search.json"
    found(Loss(), state)
    with pytest.raises(InputError, match="another search"):
        found(Loss(), state, seed=1)
    state.write_text(json.dumps(json.loads(state.read_text()) | {"progress": {"draws": 1}}))
    with pytest.raises(InputError, match="best"):
        found(Loss(), state)


def test_what_diverges_never_wins_and_can_be_saved(tmp_path) -> None:
    loss = Loss()
    result = found(lambda sizes: math.nan if sizes["units.0"] == 0 else loss(sizes), tmp_path / "search.json")
    assert result.sizes["units.0"] > 0 and any(one.loss is None for one in result.tried)
    with pytest.raises(InputError, match="finite loss"):
        found(lambda sizes: math.inf)


def test_a_budget_out_of_reach_is_said() -> None:
    with pytest.raises(Unreachable):
        search_plan({"units.0": [(8, 0.0)]}, {"units.0": [8.0]}, 5.0, Loss(), seed=0)


def test_the_frontier_holds_what_nothing_beats() -> None:
    draw = np.random.default_rng(0)
    tried = [Tried(levels=(i,), price=p, loss=q) for i, (p, q) in enumerate(draw.integers(0, 6, (30, 2)).tolist())]
    kept = frontier([*tried, Tried(levels=(99,), price=-1, loss=None)])
    slow = {
        (a.price, a.loss)
        for a in tried
        if not any((b.price <= a.price and b.loss <= a.loss) and (b.price, b.loss) != (a.price, a.loss) for b in tried)
    }
    assert {(one.price, one.loss) for one in kept} == slow and len(kept) == len(slow)
    assert [one.price for one in kept] == sorted(one.price for one in kept)


def test_a_found_plan_is_one_that_the_database_can_stitch(tmp_path) -> None:
    config = bert("tiny", 50, max_len=16).replace(width=16, num_heads=2, mlp_width=8)
    levels = {
        site.name: [
            Level(kept=tuple(range(n)), weight_DK=torch.zeros(16, n * site.group(config)), error=0.0, relative_error=e)
            for n, e in ((site.size(config), 0.0), (1, 0.5), (0, 1.0))
        ]
        for site in sites(config)
    }
    encoder = Encoder(config)
    database = Database(config, encoder_fingerprint(encoder), levels, {})
    errors = level_errors(database)
    prices = {name: [float(size) for size, _ in some] for name, some in errors.items()}
    found = search_plan(errors, prices, 9, lambda sizes: -sum(sizes.values()), seed=0, options=OPTIONS)
    small = stitch(encoder, database, found.sizes).config
    assert sum(map(len, small.kept_heads or ((0, 1), (0, 1)))) + sum(small.mlp_widths) <= 9
    assert {site.name: site.size(small) for site in sites(small)} == found.sizes
