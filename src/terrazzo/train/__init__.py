"""Runs: stages, the loop, checkpoints, what it shows, what it will take."""

from terrazzo.train.folder import read_run
from terrazzo.train.loop import train
from terrazzo.train.plan import Plan, plan
from terrazzo.train.progress import default_hooks
from terrazzo.train.report import write_report
from terrazzo.train.run import RunConfig, resolve
from terrazzo.train.stage import Budget, FromFolder, Init, Previous, Sampling, Stage

__all__ = [
    "Budget",
    "FromFolder",
    "Init",
    "Plan",
    "Previous",
    "RunConfig",
    "Sampling",
    "Stage",
    "default_hooks",
    "plan",
    "read_run",
    "resolve",
    "train",
    "write_report",
]
