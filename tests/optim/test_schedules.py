import math
import random

import pytest
from torch.testing import assert_close

from terrazzo.config import from_dict
from terrazzo.errors import InputError
from terrazzo.optim.schedules import Ramp, Schedule, ScheduleConfig

KINDS = [
    Schedule(kind="linear"),
    Schedule(kind="cosine"),
    Schedule(kind="wsd"),
    Schedule(kind="wsd", shape="1-sqrt", decay=0.3),
]


@pytest.mark.parametrize("schedule", KINDS, ids=lambda s: f"{s.kind}-{s.shape}")
def test_rises_falls_and_ends_exactly(schedule):
    values = [schedule(i / 1000) for i in range(1001)]
    top = values.index(1.0)
    assert values[0] == 0.0 and top == 60
    assert values[-1] == schedule.final == schedule(1.7)
    assert values[: top + 1] == sorted(values[: top + 1])
    assert values[top:] == sorted(values[top:], reverse=True)
    assert max(abs(a - b) for a, b in zip(values, values[1:], strict=False)) < 0.07, "a jump"


def test_values_by_hand():
    assert_close(Schedule()(0.03), 0.5)
    assert_close(Schedule(kind="linear", warmup=0.0, final=0.0)(0.25), 0.75)
    assert_close(Schedule(kind="cosine", warmup=0.0, final=0.1)(0.25), 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert Schedule(kind="wsd", decay=0.2)(0.8) == 1.0
    assert_close(Schedule(kind="wsd", decay=0.2, final=0.0)(0.85), 0.75)
    assert_close(Schedule(kind="wsd", decay=0.2, final=0.0, shape="1-sqrt")(0.85), 0.5)
    assert Schedule(kind="constant", peak=3.0)(1.0) == 3.0
    assert_close(Ramp(start=0.3, end=0.15)(0.5), 0.225)


def test_a_wall_clock_budget_ends_on_time_at_the_final_value():
    """The loop's rule: the last step is the one that the expected step time says will cross the budget."""
    noise, schedule, budget = random.Random(0), Schedule(), 100.0
    elapsed, expected, progress, multipliers = 0.0, 1.0, 0.0, []
    while progress < 1:
        progress = (elapsed + expected) / budget
        multipliers.append(schedule(progress))
        elapsed += (took := noise.uniform(0.5, 1.5))
        expected = 0.9 * expected + 0.1 * took
    assert multipliers[-1] == schedule.final
    assert multipliers[-2] < schedule.final + 0.03
    assert abs(elapsed - budget) < 1.5


def test_a_schedule_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="warmup 0.5 and decay 0.6"):
        Schedule(kind="wsd", warmup=0.5, decay=0.6)
    with pytest.raises(InputError, match="warmup is a share"):
        Schedule(warmup=6)


def test_config_by_kind():
    assert from_dict(ScheduleConfig, {"kind": "ramp", "start": 0.3, "end": 0.15}) == Ramp(start=0.3, end=0.15)
    assert from_dict(ScheduleConfig, {"kind": "wsd", "decay": 0.1}) == Schedule(kind="wsd", decay=0.1)
    with pytest.raises(InputError, match="did you mean 'warmup'"):
        from_dict(dict[str, ScheduleConfig], {"lr": {"kind": "cosine", "warmap": 0.1}})
