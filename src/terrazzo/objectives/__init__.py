"""What training minimises."""

from terrazzo.objectives.mlm import MLM, MLMConfig
from terrazzo.objectives.objective import Loss, Objective

#: every objective by the `kind` in its config; a config field of type `ObjectiveConfig` takes any of them
OBJECTIVES = {"mlm": MLMConfig}
ObjectiveConfig = MLMConfig

__all__ = ["MLM", "MLMConfig", "OBJECTIVES", "Loss", "Objective", "ObjectiveConfig"]
