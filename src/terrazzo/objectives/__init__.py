"""What training minimises."""

from typing import Annotated

from pydantic import Field

from terrazzo.objectives.clm import CLM, CLMConfig, check_direction
from terrazzo.objectives.mlm import MLM, MLMConfig
from terrazzo.objectives.objective import Loss, Objective
from terrazzo.objectives.supervised import Supervised, SupervisedConfig

#: every objective by the `kind` in its config; a config field of type `ObjectiveConfig` takes any of them
OBJECTIVES = {"mlm": MLMConfig, "clm": CLMConfig, "supervised": SupervisedConfig}
ObjectiveConfig = Annotated[MLMConfig | CLMConfig | SupervisedConfig, Field(discriminator="kind")]

__all__ = [
    "CLM",
    "CLMConfig",
    "MLM",
    "MLMConfig",
    "OBJECTIVES",
    "Loss",
    "Objective",
    "ObjectiveConfig",
    "Supervised",
    "SupervisedConfig",
    "check_direction",
]
