"""Suites: tasks that are reported together."""

from terrazzo.tasks.suites.manifest import PROFILES, Procedure, Suite, SuiteTask, read_suite, suite_names
from terrazzo.tasks.suites.result import SuiteResult, TaskOutcome
from terrazzo.tasks.suites.run import run_suite

__all__ = [
    "PROFILES",
    "Procedure",
    "Suite",
    "SuiteResult",
    "SuiteTask",
    "TaskOutcome",
    "read_suite",
    "run_suite",
    "suite_names",
]
