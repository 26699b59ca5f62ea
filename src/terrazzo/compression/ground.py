"""What compressions of one model share: its rows, what times it, its own speed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from terrazzo.compression.asked import Asked
from terrazzo.compression.plan import read_plan
from terrazzo.compression.proof_file import read_proof
from terrazzo.compression.rows import Split, read_split
from terrazzo.compression.speed import Bench, Here
from terrazzo.compression.subject import Subject, open_subject
from terrazzo.compression.timing import Times
from terrazzo.compression.workplace import PLAN, refuse_out
from terrazzo.tasks.model import TaskModel, load_task_model, model_fingerprint


class Ground:
    """A model, its rows told apart, and a bench, opened once.

    Args:
        bench: makes what times models.

    Raises:
        InputError: a model, rows or texts that cannot be used; too few rows to prove the drop.
    """

    def __init__(self, asked: Asked, bench: Callable[[Subject, Here], Bench] = Bench) -> None:
        source = open_subject(asked.model)
        assert source.task is not None
        task = source.task.model.task
        refuse_out(asked.out, source.folder)
        self.split: Split = read_split(
            task, asked.data, asked.held_out, asked.goal.drop, asked.seed, asked.fields, asked.texts
        )
        self.subject = Subject(source, self.split)
        if asked.texts is not None:
            self.subject.refuse_texts(f"--texts {asked.texts}")
        self.bench = bench(self.subject, asked.on)
        self.fingerprint = model_fingerprint(source.folder)

    @cached_property
    def times(self) -> Times:
        """Of the dense model everywhere."""
        return self.bench.beside()


@dataclass(frozen=True, kw_only=True)
class Start:
    """A cut and trained model that a faster one may start from.

    Args:
        faster: times as fast as the fastest fp32 runtime that it was proved to be.
    """

    model: TaskModel
    faster: float
    fingerprint: str


def start_of(folder: Path) -> Start | None:
    """The compressed model in `folder`, if it learned back after heads and units were cut and its speed is known.

    What was cut and not trained is no start: cut once more it loses more than the dense model cut at once.
    """
    proof, plan = read_proof(folder), read_plan(folder / PLAN)
    if proof.speeds is None or not (plan.sizes and plan.trained):
        return None
    model = load_task_model(folder).model.eval()
    return Start(model=model, faster=proof.speeds.faster, fingerprint=model_fingerprint(folder))
