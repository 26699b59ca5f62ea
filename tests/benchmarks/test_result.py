from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from benchmarks.result import Row, bootstrap_interval, read, write

ROW = Row(id="C1", metric="speed", peer="slow", floor=2.0, goal=3.0, value=2.5, low=2.4, high=2.6)
NOT_RUN = dataclasses.replace(ROW, value=None, low=None, high=None, status="not run (no GPU)")


@pytest.mark.parametrize(
    ("better", "low", "value", "high", "verdict"),
    [
        ("higher", 1.8, 1.9, 2.1, "below the floor"),
        ("higher", 1.9, 2.0, 2.1, "reaches the floor, within the spread"),
        ("higher", 2.0, 2.5, 3.1, "reaches the floor"),
        ("higher", 2.9, 3.0, 3.1, "reaches the goal, within the spread"),
        ("higher", None, 3.0, None, "reaches the goal"),
        ("lower", 2.9, 3.1, 4.0, "reaches the floor"),
        ("lower", 3.9, 4.0, 4.1, "reaches the floor, within the spread"),
        ("lower", 3.9, 4.1, 4.2, "below the floor"),
        ("lower", 2.8, 2.9, 3.0, "reaches the goal"),
    ],
)
def test_verdict_knows_which_way_is_good_and_what_is_certain(better, low, value, high, verdict):
    floor = 2.0 if better == "higher" else 4.0
    row = dataclasses.replace(ROW, better=better, floor=floor, low=low, value=value, high=high)
    assert row.verdict == verdict


def test_a_row_is_either_measured_or_says_why_not():
    assert NOT_RUN.verdict == "not run (no GPU)"
    for fields in ({"value": None}, {"status": "not run (no GPU)"}, {"status": "skipped"}):
        with pytest.raises(ValueError, match="C1"):
            dataclasses.replace(ROW, **fields)


def test_interval_covers_the_true_ratio_of_medians():
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        value, low, high = bootstrap_interval(generator.normal(6, 1, 40), generator.normal(2, 0.2, 40), draws=400)
        assert low <= value <= high
        hits += low <= 3.0 <= high
    assert 180 <= hits <= 199


def test_a_run_without_gpu_keeps_measured_rows(tmp_path):
    path = write("speed", [ROW], {"raw": [1, 2]}, folder=tmp_path)
    before = path.read_bytes()
    write("speed", [NOT_RUN], folder=tmp_path)
    assert path.read_bytes() == before
    assert read(path) == [ROW]
    write("speed", [dataclasses.replace(ROW, value=9.0), NOT_RUN], folder=tmp_path)
    assert [row.value for row in read(path)] == [9.0, None]
