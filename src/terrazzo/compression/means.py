"""How much work a compression takes: minutes or hours."""

from __future__ import annotations

from collections.abc import Mapping

from terrazzo.compression.goal import Effort
from terrazzo.compression.recover import EFFORTS, RecoverConfig
from terrazzo.compression.search import SearchOptions
from terrazzo.config import config


@config
class Means:
    """What an effort stands for.

    Args:
        search: of plans; loss_rows: rows to learn from that judge one.
        calibration: rows to learn from whose inputs weigh errors.
        recover: training of what was cut; between: that of the rounds before the last.
        gradual: how many times as fast each round of cutting and training makes a model at most; None cuts at once.
    """

    search: SearchOptions
    loss_rows: int
    calibration: int
    recover: RecoverConfig
    between: RecoverConfig = RecoverConfig(epochs=3.0, tokens=None)
    gradual: float | None = None


MEANS: Mapping[Effort, Means] = {
    "minutes": Means(
        search=SearchOptions(starts=12, failures=6, evaluations=40),
        loss_rows=300,
        calibration=512,
        recover=EFFORTS["minutes"],
    ),
    "hours": Means(
        search=SearchOptions(starts=40, failures=25, evaluations=150),
        loss_rows=500,
        calibration=2048,
        recover=EFFORTS["hours"],
        gradual=1.6,
    ),
}
