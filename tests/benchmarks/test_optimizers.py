import math

import numpy as np
from torch.testing import assert_close

from benchmarks.optimizers import bootstrap, fewer_tokens

BUDGETS = (1.0, 0.8, 0.5)


def losses(offset):
    """A challenger that falls by 0.5 nats for each factor e of tokens."""
    return [3.0 + offset - 0.5 * math.log(share) for share in BUDGETS]


def test_the_crossing_is_found_between_budgets():
    assert_close(fewer_tokens(3.0 + 0.5 * math.log(1.6), losses(0.0), BUDGETS), 1.6)
    assert_close(fewer_tokens(3.0, losses(0.0), BUDGETS), 1.0)


def test_nothing_is_claimed_beyond_what_was_run():
    assert fewer_tokens(2.0, losses(0.0), BUDGETS) == 1.0
    assert_close(fewer_tokens(9.0, losses(0.0), BUDGETS), 2.0)
    assert fewer_tokens(3.0, [math.inf] * 3, BUDGETS) == 1.0


def test_the_interval_spans_the_seeds():
    marks = [3.0 + 0.5 * math.log(ratio) for ratio in (1.2, 1.4, 1.6)]
    low, high = bootstrap(marks, np.array([losses(0.0)] * 3), BUDGETS)
    assert_close(low, 1.2)
    assert_close(high, 1.6)
