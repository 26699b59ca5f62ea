"""Goals say what is wrong with them, and how many rows a proof takes."""

from __future__ import annotations

import numpy as np
import pytest

from terrazzo.compression.goal import Goal, rows_to_prove
from terrazzo.errors import InputError


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "nothing to optimise"),
        ({"drop": 2.0}, "nothing to optimise"),
        ({"faster": 4, "under_ms": 5}, "faster 4 and under 5 ms both ask for speed"),
        ({"faster": 0.5}, "faster 0.5: a factor above 1, as 4 for four times as fast"),
        ({"smaller": float("inf")}, "smaller inf: a factor above 1"),
        ({"smaller": float("nan")}, "smaller nan: a factor above 1"),
        ({"under_ms": 0}, "under 0 ms: a time above 0"),
        ({"faster": 2, "drop": -1}, "drop -1: points of the metric"),
    ],
)
def test_a_goal_that_cannot_be_is_refused(fields, said) -> None:
    with pytest.raises(InputError, match=said):
        Goal(**fields)


def test_a_goal_reads_as_a_sentence() -> None:
    assert str(Goal(faster=4, smaller=10, drop=1)) == "4 times as fast and 10 times as small, at most 1 point lost"


def test_with_so_many_rows_the_interval_reaches_as_far_as_the_drop() -> None:
    rows, rng = rows_to_prove(1.0, 0.04), np.random.default_rng(0)
    changes = rng.choice([-1, 0, 1], p=[0.02, 0.96, 0.02], size=(4000, rows))
    assert rows == 1083 and 100 * np.quantile(changes.mean(1), 0.95) == pytest.approx(1.0, rel=0.05)
    with pytest.raises(ValueError, match="any number"):
        rows_to_prove(0.0, 0.04)
