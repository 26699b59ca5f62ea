"""What training minimises."""

from typing import Annotated

from pydantic import Field

from terrazzo.objectives.mlm import MLM, MLMConfig
from terrazzo.objectives.objective import Loss, Objective
from terrazzo.objectives.supervised import Supervised, SupervisedConfig

#: every objective by the `kind` in its config; a config field of type `ObjectiveConfig` takes any of them
OBJECTIVES = {"mlm": MLMConfig, "supervised": SupervisedConfig}
ObjectiveConfig = Annotated[MLMConfig | SupervisedConfig, Field(discriminator="kind")]

__all__ = [
    "MLM",
    "MLMConfig",
    "OBJECTIVES",
    "Loss",
    "Objective",
    "ObjectiveConfig",
    "Supervised",
    "SupervisedConfig",
]
