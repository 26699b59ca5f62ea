from __future__ import annotations

import re

import numpy as np
import pytest

from terrazzo.train.report.charts import Figure, Series, XAxis, chart
from terrazzo.train.report.scales import Scale, labels, nice_ticks, smooth, thin, time_ticks

STEPS = XAxis("step", "steps", "steps")


def places(html: str, look: str) -> list[tuple[str, int, int]]:
    """Pen movements (M or L, x, y) of the path of one look."""
    path = re.search(rf'<path d="([^"]*)" class="{look}">', str(html))
    assert path is not None
    return [(pen, int(x), int(y)) for pen, x, y in re.findall(r"([ML])(\d+) (\d+)", path[1])]


def test_a_line_goes_where_its_numbers_are():
    x = np.array([0.0, 5.0, 10.0])
    drawn = chart(Figure("Loss", "nats", from_zero=True), STEPS, [Series("mean", x, np.array([0.0, 54.0, 100.0]))])
    assert places(drawn, "line") == [("M", 0, 10000), ("L", 5000, 5000), ("L", 10000, 741)]  # top is 108
    assert "Loss" in drawn and "nats" in drawn and ">100</span>" in drawn


def test_a_number_that_is_missing_lifts_the_pen_and_is_marked():
    y = np.array([1.0, np.nan, 1.0, 1.0])
    drawn = chart(Figure("Loss", ""), STEPS, [Series("", np.arange(4.0), y, "raw", missing=True)])
    assert [pen for pen, _, _ in places(drawn, "raw")] == ["M", "M", "L"]
    assert re.search(r'd="M3333 10000v-600" class="gone"', drawn)


def test_the_reading_under_the_pointer_is_the_nearest_step_and_the_last_evaluation():
    x = np.arange(1.0, 61.0)
    series = [Series("mean", x, x * 10), Series("held out", np.array([20.0, 40.0]), np.array([7.0, 8.0]), "heldout")]
    readings = re.findall(r"<b>([^<]*)</b>", chart(Figure("Loss", ""), STEPS, series))
    assert readings[29] == "29.5 steps · mean 300 · held out 7.00"
    assert readings[45].endswith("held out 8.00") and "held out" not in readings[5]


def test_smoothing_against_the_obvious_loop():
    values = np.random.default_rng(0).normal(size=500)
    values[[3, 100, 101]] = np.nan
    wanted = []
    for i in range(500):
        part = values[max(0, i - min(i, 5)) : min(500, i + min(i, 5) + 1)]
        wanted.append(np.nanmean(part))
    np.testing.assert_allclose(smooth(values, 0.01), wanted, atol=1e-12)
    assert smooth(values)[0] == values[0]


def test_thinning_keeps_ends_peaks_and_gaps():
    y = np.sin(np.arange(10_000.0))
    y[1234], y[7000] = 9.0, np.nan
    x, kept = thin(np.arange(10_000.0), y, keep_peaks=True)
    assert len(x) < 900 and x[0] == 0 and x[-1] == 9999
    assert np.nanmax(kept) == 9.0 and np.isnan(kept).any()
    np.testing.assert_array_equal(kept, y[x.astype(int)])


@pytest.mark.parametrize(
    ("ticks", "wanted"),
    [
        (labels(nice_ticks(0, 0.0216)), ["0", "0.005", "0.010", "0.015", "0.020"]),
        (labels(nice_ticks(0, 51)), ["0", "10", "20", "30", "40", "50"]),
        (labels(nice_ticks(7.0, 8.4)), ["7.00", "7.25", "7.50", "7.75", "8.00", "8.25"]),
        (labels(nice_ticks(0, 13_100_000)), ["0", "2.5M", "5.0M", "7.5M", "10.0M", "12.5M"]),
        (labels(nice_ticks(0, 0.0005)), ["0", "0.0001", "0.0002", "0.0003", "0.0004", "0.0005"]),
        (labels(Scale(1.7, 12, log=True).ticks()), ["2", "3", "4", "6", "8", "10"]),
        (time_ticks(0, 600), [0, 120, 240, 360, 480, 600]),
    ],
)
def test_ticks_are_round(ticks, wanted):
    assert ticks == wanted
