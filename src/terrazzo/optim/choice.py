"""The optimizers by name: the one place that a new one is added to."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from terrazzo.optim.adamw import AdamWConfig
from terrazzo.optim.lion import LionConfig
from terrazzo.optim.muon import MuonConfig
from terrazzo.optim.stable_adamw import StableAdamWConfig

OPTIMIZERS = {"adamw": AdamWConfig, "stable_adamw": StableAdamWConfig, "lion": LionConfig, "muon": MuonConfig}

#: Any of them, as a config field told apart by `kind`.
OptimizerConfig = Annotated[AdamWConfig | StableAdamWConfig | LionConfig | MuonConfig, Field(discriminator="kind")]
