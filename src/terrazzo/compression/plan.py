"""What is kept of a model, where it is meant to run, and how fast it should be there: a plan as a JSON file."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path

from terrazzo.compression.goal import Effort, Goal
from terrazzo.compression.sites import Site
from terrazzo.config import config, from_dict, read_file, to_dict
from terrazzo.errors import InputError
from terrazzo.provenance import write_json_atomic
from terrazzo.runtime import Precision
from terrazzo.runtime.folder import RuntimeName

FORMAT = "terrazzo-plan-1"


@config
class Plan:
    """The chosen size of every site that is cut.

    Args:
        sizes: structures that each site keeps, by its name (heads.0, units.0), as `stitch` takes them.
        bits: of every matrix that is packed, by its name.
        target: what was asked for.
        trained: whether the model learned back after it was cut; effort: it was made with; texts: rows without answers
            that it had to learn by.
        predicted_ms: of a batch of documents of `lengths`, by the latency table of `machine`.
        threads: that the prediction is for.
        seed: of the search that found it.
        machine: key of the machine whose times they are; they hold on no other.
    """

    sizes: dict[str, int]
    bits: dict[str, int] = field(default_factory=dict)
    runtime: RuntimeName
    precision: Precision
    target: Goal
    trained: bool = False
    effort: Effort = "minutes"
    texts: int = 0
    predicted_ms: float
    lengths: tuple[int, ...]
    threads: int
    seed: int
    machine: str

    def __post_init__(self) -> None:
        for name, size in self.sizes.items():
            Site.parse(name)
            if size < 0:
                raise InputError(f"sizes: {name} keeps {size}, which is less than 0")


def write_plan(path: str | Path, plan: Plan) -> None:
    """Write `plan` as a whole JSON file."""
    write_json_atomic(path, {"format": FORMAT, **to_dict(plan)})


def read_plan(path: str | Path) -> Plan:
    """The plan of a file.

    Raises:
        InputError: no such file, or not a plan; the message names the field.
    """
    values = read_file(path)
    if (found := values.pop("format", None)) != FORMAT:
        raise InputError(f"{path}: format is {found!r}, a plan has {FORMAT!r}")
    return from_dict(Plan, values, str(path))
