"""Suites: tasks that are reported together."""

from terrazzo.tasks.suites.manifest import Procedure, Suite, SuiteTask, read_suite, suite_names

__all__ = ["Procedure", "Suite", "SuiteTask", "read_suite", "suite_names"]
