from __future__ import annotations

import json

import pytest

from recipes.claims import Claim, holds, read_recipe, read_recipes, verdict
from terrazzo.errors import InputError

PAPER = """
title = "A paper"
arxiv = "0000.00000"
slug = "a-paper"
rooms = ["optim"]
takes = "its optimizer"

[[claims]]
id = "faster"
where = "Table 1"
paper = "twice as fast"
metric = "speedup"
condition = "speedup >= 1.5"
direction = "speedup > 1"
"""


def claim(**fields):
    given = {"id": "c", "where": "Table 1", "paper": "2x", "metric": "a", "condition": "a >= 1.5", **fields}
    return Claim(**given)


def result(*per_seed):
    return {"metrics": {str(seed): metrics for seed, metrics in enumerate(per_seed)}}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "a_paper"
    (path / "results").mkdir(parents=True)
    (path / "paper.toml").write_text(PAPER)
    return path


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("a >= 2", True),
        ("a > 2", False),
        ("b < a", True),
        ("b <= 0.4 * a", False),
        ("b <= 0.5 * a", True),
        ("a < -1e-3", False),
    ],
)
def test_conditions(condition, expected):
    assert holds(condition, {"a": 2.0, "b": 1.0}) is expected


@pytest.mark.parametrize("condition", ["a", "a == 2", "a >= 2 and b < 1", "f() > 1", "2 < a", "a >= b * 2"])
def test_anything_else_is_refused(condition):
    with pytest.raises(InputError, match="claim c"):
        claim(condition=condition)


@pytest.mark.parametrize(
    ("per_seed", "status"),
    [
        ([{"a": 1.4}, {"a": 1.7}], "holds"),
        ([{"a": 1.2}, {"a": 1.3}], "holds in direction"),
        ([{"a": 0.9}, {"a": 1.0}], "does not hold"),
        ([{"a": None}, {"a": 9.0}], "does not hold"),
        ([{"b": 9.0}], "not run"),
        ([], "not run"),
    ],
)
def test_verdict_of_the_mean_over_seeds(per_seed, status):
    assert verdict(claim(direction="a > 1"), result(*per_seed)).status == status


def test_a_mean_that_not_every_seed_bears_out_says_so():
    against = claim(condition="a > b", metric="a")
    assert str(verdict(against, result({"a": 2, "b": 1}, {"a": 3, "b": 1}))) == "holds"
    assert str(verdict(against, result({"a": 5, "b": 1}, {"a": 1, "b": 2}))) == "holds (on average, in 1 of 2 seeds)"
    assert str(verdict(against, result({"a": 1, "b": 2}, {"a": 1, "b": 2}))) == "does not hold"


def test_verdict_shows_the_spread_and_says_why_it_was_not_run():
    shown = verdict(claim(), result({"a": 1.0}, {"a": 3.0}))
    assert (shown.value, shown.low, shown.high, shown.figure) == (2.0, 1.0, 3.0, "2 (1 to 3, 2 seeds)")
    assert str(verdict(claim(needs="an H200 for an hour"), None)) == "not run (an H200 for an hour)"
    assert "lack a" in str(verdict(claim(), result({"b": 1.0})))
    assert verdict(claim(), result({"a": 2.0}, {"b": 1.0})).seeds == 1


def test_the_claims_tier_decides(folder):
    (folder / "results" / "smoke.json").write_text(json.dumps(result({"speedup": 9.0})))
    assert [str(v) for _, v in read_recipe(folder).verdicts()] == ["not run (no small results yet)"]
    (folder / "results" / "small.json").write_text(json.dumps(result({"speedup": 1.2})))
    assert [v.status for _, v in read_recipe(folder).verdicts()] == ["holds in direction"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("metric =", "metrik =", "did you mean 'metric'"),
        ('slug = "a-paper"', 'slug = "another"', "belongs in the folder another"),
        ("[[claims]]", PAPER[PAPER.index("[[claims]]") :] + "[[claims]]", "ids must differ"),
    ],
)
def test_a_wrong_paper_file_is_refused(folder, old, new, message):
    (folder / "paper.toml").write_text(PAPER.replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        read_recipe(folder)


def test_every_recipe_reads():
    for recipe in read_recipes():
        assert recipe.paper.claims, recipe.folder
