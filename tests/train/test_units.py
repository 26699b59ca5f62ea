from __future__ import annotations

import math

import pytest

from terrazzo.train.units import duration, money, percent, plural, short, significant, whole, with_unit


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (short(1_234_567), "1.23M"),
        (short(999_999), "1.00M"),
        (short(9003), "9.00k"),
        (short(9000), "9k"),
        (short(12), "12"),
        (short(41_234), "41.2k"),
        (short(0.01234), "0.0123"),
        (short(-2500), "-2.50k"),
        (short(3.2e18), "3.20E"),
        (short(math.nan), "–"),
        (with_unit(1.21e13, "FLOP/s"), "12.1 TFLOP/s"),
        (with_unit(12, "FLOP"), "12 FLOP"),
        (significant(1234.5), "1,234"),
        (significant(0.00012345, 2), "0.00012"),
        (significant(0), "0"),
        (plural(1, "step"), "1 step"),
        (plural(3000, "step"), "3,000 steps"),
        (whole(1_234_567.2), "1,234,567"),
        (percent(0.4123), "41.2 %"),
        (duration(0), "0 s"),
        (duration(0.04), "0.0 s"),
        (duration(9.96), "10 s"),
        (duration(200), "3 m 20 s"),
        (duration(3599.6), "1 h"),
        (duration(5400), "1 h 30 m"),
        (duration(86_400 * 2 + 3600 * 3 + 1801), "2 d 4 h"),
        (duration(math.inf), "–"),
        (money(12.3), "12.30"),
        (money(0.0234), "0.023"),
    ],
)
def test_units(shown, wanted):
    assert shown == wanted
