"""A plan survives its file, and says what a damaged one lacks."""

from __future__ import annotations

import json

import pytest

from terrazzo.compression.goal import Goal
from terrazzo.compression.plan import Plan, read_plan, write_plan
from terrazzo.errors import InputError

PLAN = Plan(
    sizes={"heads.0": 1, "units.1": 0},
    runtime="openvino",
    precision="int8",
    target=Goal(faster=4.0),
    predicted_ms=1.5,
    lengths=(8, 16),
    threads=1,
    seed=3,
    machine="one",
)


def test_a_plan_is_what_was_written(tmp_path) -> None:
    write_plan(tmp_path / "plan.json", PLAN)
    assert read_plan(tmp_path / "plan.json") == PLAN


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "other"}, "format is 'other'"),
        ({"seeds": 1}, "did you mean 'seed'"),
        ({"sizes": {"head.0": 1}}, "heads.LAYER"),
        ({"sizes": {"heads.0": -1}}, "keeps -1"),
        ({"precision": "int4"}, "precision"),
    ],
)
def test_what_is_no_plan_is_refused_by_its_field(tmp_path, change, said) -> None:
    write_plan(tmp_path / "plan.json", PLAN)
    values = json.loads((tmp_path / "plan.json").read_text()) | change
    (tmp_path / "plan.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=said):
        read_plan(tmp_path / "plan.json")
