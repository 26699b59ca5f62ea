"""Labelled rows from whatever file they came in."""

from terrazzo.tasks.rows.examples import example_of
from terrazzo.tasks.rows.fields import KINDS
from terrazzo.tasks.rows.reading import Rows, read_examples, read_lines, read_rows

__all__ = ["KINDS", "Rows", "example_of", "read_examples", "read_lines", "read_rows"]
