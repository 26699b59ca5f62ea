from __future__ import annotations

import json
import math

import pytest

from recipes import runner
from recipes.claims import Claim, Paper, Recipe, read_recipes
from recipes.runner import Context, run
from terrazzo.errors import InputError


@pytest.fixture
def recipe(tmp_path):
    claim = Claim(id="c", where="Table 1", paper="2x", metric="a", condition="a > 1")
    paper = Paper(title="A paper", arxiv="0", slug="a-paper", rooms=("optim",), takes="it", claims=(claim,))
    return Recipe(folder=tmp_path / "a_paper", paper=paper)


def test_results_hold_metrics_config_and_provenance_but_no_folder_of_this_machine(recipe, tmp_path, monkeypatch):
    context = Context(work=tmp_path / "work", data_root=tmp_path / "data")

    def method(tier, context):
        context.record("config", {"data": str(context.work / "prepared"), "sources": [str(context.data_root / "wiki")]})
        context.record("curve", [1.0, 0.5])
        return {3: {"a": 2, "b": math.inf}}

    monkeypatch.setattr(runner, "load", lambda recipe: method)
    path = run(recipe, "smoke", context)
    written = json.loads(path.read_text())
    assert path == recipe.folder / "results" / "smoke.json"
    assert written["metrics"] == {"3": {"a": 2.0, "b": None}}
    assert written["config"] == {"data": "WORK/prepared", "sources": ["DATA_ROOT/wiki"]}
    assert written["details"] == {"curve": [1.0, 0.5]}
    assert {"commit", "dirty", "versions", "hardware", "python"} <= set(written["provenance"])
    assert str(tmp_path) not in path.read_text()


def test_a_recipe_must_record_its_config(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "load", lambda recipe: lambda tier, context: {0: {"a": 1.0}})
    with pytest.raises(ValueError, match="record its config"):
        run(recipe, "smoke", Context(work=tmp_path))
    assert not (recipe.folder / "results").exists()


def test_missing_data_names_where_to_get_it(tmp_path):
    for root in (None, tmp_path):
        with pytest.raises(InputError, match="Wikipedia dump"):
            Context(work=tmp_path, data_root=root).data("enwiki", "the Wikipedia dump")


@pytest.mark.parametrize("recipe", read_recipes(), ids=lambda recipe: recipe.paper.slug)
def test_smoke_tier_measures_what_the_claims_need(recipe, tmp_path):
    path = run(recipe, "smoke", Context(work=tmp_path / "work"), out=tmp_path)
    for metrics in json.loads(path.read_text())["metrics"].values():
        assert {claim.metric for claim in recipe.paper.claims if claim.tier != "paper"} <= set(metrics)
