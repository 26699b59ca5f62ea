"""Run a recipe at a tier and write down what came out, with everything needed to run it again."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from recipes.claims import Recipe, Tier
from terrazzo.config import nearest, to_dict
from terrazzo.errors import InputError
from terrazzo.provenance import finite, peak_memory_bytes, provenance, write_json_atomic

Run = Callable[[Tier, "Context"], Mapping[int, Mapping[str, float]]]


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a recipe is given.

    Args:
        work: a folder for data folders and runs; kept, so that a second run can reuse what `prepare` wrote.
        data_root: where downloaded data sets lie, one folder each; None where the person named none.
    """

    work: Path
    data_root: Path | None = None
    recorded: dict[str, Any] = field(default_factory=dict)

    def data(self, name: str, source: str) -> Path:
        """The folder of data set `name` under the data root.

        Raises:
            InputError: it is not there; the message passes on `source`, which says where the public can get it.
        """
        if self.data_root is None:
            raise InputError(
                f"this tier reads {name!r} ({source}): pass --data-root or set TERRAZZO_DATA to its parent folder"
            )
        path = self.data_root / name
        if not path.exists():
            raise InputError(f"{path}: no such data set; download {source} and put it there")
        return path

    def record(self, name: str, value: Any) -> None:
        """Keep `value` (plain data or a config) in the results file; "config" must be recorded."""
        self.recorded[name] = to_dict(value)

    def log(self, message: str) -> None:
        """Show a line of progress."""
        print(f"  {message}", flush=True)


def run(recipe: Recipe, tier: Tier, context: Context, out: Path | None = None) -> Path:
    """Run `recipe` at `tier` and write `out` (the recipe's `results`) / `tier`.json.

    Raises:
        InputError: a data set is missing, or the recipe has no such tier.
        ValueError: the recipe returned no metrics or recorded no config.
    """
    if tier == "downstream" and not any(claim.tier == tier for claim in recipe.paper.claims):
        raise InputError(
            f"recipe {recipe.paper.slug} has no tier 'downstream': it checks no claim on fine-tuned models"
        )
    started = time.monotonic()
    metrics = load(recipe)(tier, context)
    seconds = time.monotonic() - started
    if not metrics or "config" not in context.recorded:
        raise ValueError(f"{recipe.folder}: run() must return metrics per seed and record its config")
    recorded = dict(context.recorded)
    result = {
        "slug": recipe.paper.slug,
        "tier": tier,
        "provenance": provenance(),
        "seconds": round(seconds, 1),
        "peak_memory_bytes": peak_memory_bytes(),
        "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        "metrics": {str(seed): finite({name: float(v) for name, v in own.items()}) for seed, own in metrics.items()},
        "config": recorded.pop("config"),
        "details": recorded,
    }
    path = (out or recipe.folder / "results") / f"{tier}.json"
    write_json_atomic(path, without_paths(result, context))
    return path


def load(recipe: Recipe) -> Run:
    """The `run` function of the recipe's `recipe.py`."""
    run_function: Run = importlib.import_module(f"recipes.{recipe.folder.name}.recipe").run
    return run_function


def find(recipes: list[Recipe], slug: str) -> Recipe:
    """The recipe with this slug.

    Raises:
        InputError: there is none; the message suggests the nearest.
    """
    by_slug = {recipe.paper.slug: recipe for recipe in recipes}
    if slug.replace("_", "-") not in by_slug:
        raise InputError(f"recipe {slug!r}: {nearest(slug, by_slug)}")
    return by_slug[slug.replace("_", "-")]


def data_root(given: Path | None) -> Path | None:
    """`--data-root`, else the environment's TERRAZZO_DATA, else None."""
    return given or (Path(os.environ["TERRAZZO_DATA"]) if os.environ.get("TERRAZZO_DATA") else None)


def without_paths(value: Any, context: Context) -> Any:
    """`value` with this machine's folders replaced by WORK and DATA_ROOT, so that results read the same anywhere."""
    if isinstance(value, Mapping):
        return {key: without_paths(item, context) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(item, context) for item in value]
    if isinstance(value, str):
        value = value.replace(str(context.work), "WORK")
        return value.replace(str(context.data_root), "DATA_ROOT") if context.data_root else value
    return value
