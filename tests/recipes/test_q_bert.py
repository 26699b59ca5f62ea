from __future__ import annotations

from recipes.claims import RECIPES, read_recipe
from recipes.q_bert import recipe
from recipes.runner import Context


def test_smoke_tier_has_every_claimed_metric(tmp_path):
    context = Context(work=tmp_path)
    metrics = recipe.run("smoke", context)[0]
    claimed = {claim.metric for claim in read_recipe(RECIPES / "q_bert").paper.claims}
    assert claimed <= metrics.keys() and "config" in context.recorded
    assert metrics["sst2_unsaid_bytes"] == 0
    for name in ("8x", "13x"):
        assert metrics[f"mrpc_factor_{name}"] >= recipe.SETTINGS["smoke"].factors[name]
    assert metrics["sst2_factor_bits_2"] > metrics["sst2_factor_bits_4"]
