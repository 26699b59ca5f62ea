"""Loops that take turns: the order of steps, whose time is whose, and a loop that breaks."""

from __future__ import annotations

import time

import pytest

from benchmarks.finetuning import ratio
from benchmarks.turns import alternate


def test_chunks_alternate_and_each_pays_for_its_own():
    seen = []

    def loop(name, seconds):
        def run(turns):
            turns.wait(name)
            for _ in range(4):
                seen.append(name)
                time.sleep(seconds)
                turns.stepped(name)

        return run

    spent = alternate({"a": loop("a", 0.0), "b": loop("b", 0.02)}, chunk=2)
    assert "".join(seen) == "aabbaabb"
    assert len(spent["a"].seconds) == len(spent["b"].seconds) == 2
    assert max(spent["a"].seconds) < 0.03 < min(spent["b"].seconds)


def test_a_loop_that_breaks_does_not_hold_up_the_other():
    done = []

    def broken(turns):
        turns.wait("broken")
        raise RuntimeError("no more rows")

    def whole(turns):
        turns.wait("whole")
        for step in range(3):
            turns.stepped("whole")
            done.append(step)

    with pytest.raises(RuntimeError, match="no more rows"):
        alternate({"broken": broken, "whole": whole}, chunk=1)
    assert done == [0, 1, 2]


def test_the_ratio_weighs_problems_by_their_length():
    value, low, high = ratio([[2.0, 2.0], [30.0]], [[1.0, 1.0], [10.0]], weights=[9, 1])
    assert value == pytest.approx((9 * 2 + 30) / (9 + 10)) and low <= value <= high
