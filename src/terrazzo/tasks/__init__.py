"""Tasks that an encoder is fine-tuned for: rows, heads, losses, metrics, predictions."""

from terrazzo.tasks.model import TaskModel
from terrazzo.tasks.task import BadRow, Encoded, Example, Result, Scores, Span, Task

__all__ = ["BadRow", "Encoded", "Example", "Result", "Scores", "Span", "Task", "TaskModel"]
