"""Quality against what pretraining cost: a suite tried at every kept checkpoint of one or more runs."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import stdev
from typing import Any

from terrazzo.config import to_dict
from terrazzo.errors import InputError
from terrazzo.provenance import finite, provenance, write_json_atomic
from terrazzo.tasks.suites import SuiteResult, run_suite
from terrazzo.tasks.suites.manifest import Profile
from terrazzo.train.folder import read_run
from terrazzo.train.metrics import is_evaluation, read_metrics

#: Okabe and Ito's colours, told apart by colour-blind readers, with a marker each.
_COLORS = ("#d55e00", "#222222", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = "osD^vPX"
_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True, kw_only=True)
class Point:
    """A checkpoint.

    Args:
        seconds, flops: of pretraining up to it; flops is NaN where the run did not count them.
        quality: mean over tasks, mean over seeds of fine-tuning; spread: standard deviation over those seeds.
        tasks: mean score by task.
    """

    step: int
    tokens: int
    seconds: float
    flops: float
    quality: float
    spread: float
    seeds: int
    tasks: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A run's checkpoints in order."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class ParetoResult:
    """All runs' curves, and how they were measured."""

    suite: str
    title: str
    profile: str
    tasks: tuple[str, ...]
    missing: tuple[str, ...]
    curves: tuple[Curve, ...]
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; a number that does not exist is null."""
        values: dict[str, Any] = finite({"format": "terrazzo-pareto-1", **to_dict(self)})
        return values


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """Steps and model folders of a run's kept checkpoints, and of its final model where no checkpoint is as late.

    Raises:
        InputError: not a run folder, or no checkpoint in it.
    """
    read_run(run)
    found = sorted(
        (int(match[1]), path) for path in (run / "checkpoints").glob("step-*") if (match := _STEP.fullmatch(path.name))
    )
    last = max((line["step"] for line in read_metrics(run / "metrics.jsonl")), default=0)
    if (run / "model" / "config.json").is_file() and not (found and found[-1][0] >= last):
        found.append((last, run / "model"))
    if not found:
        raise InputError(f"{run}: no checkpoints; train with a larger `keep` and a smaller `checkpoint_every`")
    return found


def spent(run: Path, steps: Sequence[int]) -> list[dict[str, float]]:
    """Tokens, seconds and operations (cumulative) that each of these steps had cost, from metrics.jsonl."""
    flops, at = 0.0, {0: {"tokens": 0.0, "seconds": 0.0, "flops": 0.0}}
    for line in read_metrics(run / "metrics.jsonl"):
        if not is_evaluation(line):
            flops += line.get("flops", math.nan)
            at[line["step"]] = {"tokens": line["tokens"], "seconds": line["seconds"], "flops": flops}
    absent = [step for step in steps if step not in at]
    if absent:
        raise InputError(f"{run / 'metrics.jsonl'}: has no line for the checkpoint of step {absent[0]}")
    return [at[step] for step in steps]


def run_pareto(
    suite: str,
    runs: Sequence[str | Path],
    data_root: str | Path,
    out: str | Path,
    *,
    profile: Profile = "quick",
    tasks: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    learning_rates: Sequence[float] | None = None,
    overrides: Mapping[str, Any] | None = None,
    device: str = "auto",
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> ParetoResult:
    """Try a suite at every checkpoint of runs; writes OUT/pareto.json, .png and .svg.

    Checkpoints that were tried before under the same settings are not tried again.

    Args:
        runs: run folders; their names are the legend.
        out: also holds every checkpoint's suite run under OUT/RUN/STEP.
        profile, tasks, seeds, learning_rates, overrides, device, threads: as in `run_suite`.
        progress: called with a line for each checkpoint.

    Raises:
        InputError: a folder is no run, two runs have one name, or what `run_suite` refuses.
    """
    folders, out = [Path(run).resolve() for run in runs], Path(out)
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        raise InputError(f"runs {', '.join(names)}: the legend needs a different folder name for each")
    chosen: dict[str, Any] = {"profile": profile, "tasks": tasks, "seeds": seeds, "learning_rates": learning_rates}
    chosen |= {"overrides": overrides, "device": device, "threads": threads, "progress": progress}
    for folder in folders:
        checkpoints(folder)
    tried = [try_run(suite, folder, data_root, out, **chosen) for folder in folders]
    last = tried[-1][1]
    result = ParetoResult(
        suite=suite,
        title=last.title,
        profile=profile,
        tasks=tuple(task.name for task in last.tasks),
        missing=tuple(task.name for task in last.missing),
        curves=tuple(curve for curve, _ in tried),
        settings={task.name: to_dict(task.procedure) for task in last.tasks},
        provenance=provenance(),
    )
    write_json_atomic(out / "pareto.json", result.to_dict())
    draw(result, out)
    return result


def try_run(
    suite: str,
    run: str | Path,
    data_root: str | Path,
    out: str | Path,
    *,
    progress: Callable[[str], None] | None = None,
    **settings: Any,
) -> tuple[Curve, SuiteResult]:
    """Try a suite at every checkpoint of one run, under OUT/RUN/STEP; `settings` are those of `run_suite`.

    Returns:
        the run's curve, and what its last checkpoint scored.
    """
    folder, points = Path(run).resolve(), []
    kept = checkpoints(folder)
    for (step, model), cost in zip(kept, spent(folder, [step for step, _ in kept]), strict=True):
        result = run_suite(suite, model, data_root, Path(out) / folder.name / f"step-{step:08d}", **settings)
        points.append(_point(step, cost, result))
        if progress is not None:
            progress(f"{folder.name} step {step}: {100 * points[-1].quality:.1f}")
    return Curve(name=folder.name, points=tuple(points)), result


def _point(step: int, cost: Mapping[str, float], result: SuiteResult) -> Point:
    means = list(result.seed_means.values())
    return Point(
        step=step,
        tokens=int(cost["tokens"]),
        seconds=cost["seconds"],
        flops=cost["flops"],
        quality=result.mean,
        spread=stdev(means) if len(means) > 1 else 0.0,
        seeds=len(means),
        tasks={task.name: task.score for task in result.tasks},
    )


def draw(result: ParetoResult, folder: Path, stem: str = "pareto", caption: str = "") -> None:
    """Write STEM.png and STEM.svg: quality against seconds on the left, against operations on the right.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise InputError("pictures need matplotlib: pip install 'terrazzo[track]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.hashsalt": "terrazzo", "font.size": 10}):
        figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.6), sharey=True, facecolor="white")
        for axes, cost, label in zip(
            panels, ("seconds", "flops"), ("pretraining time (s)", "pretraining operations (FLOP)"), strict=True
        ):
            _panel(axes, result.curves, cost)
            axes.set_xlabel(label)
        panels[0].set_ylabel(f"{result.title}: mean of {len(result.tasks)} tasks")
        panels[0].legend(frameon=False, fontsize=9, loc="upper left")
        figure.suptitle(textwrap.fill(caption or _caption(result), 130), fontsize=9)
        figure.tight_layout()
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{stem}.svg", metadata={"Date": None})
        figure.savefig(folder / f"{stem}.png", dpi=130)
        pyplot.close(figure)


def _panel(axes: Any, curves: Sequence[Curve], cost: str) -> None:
    for index, curve in enumerate(curves):
        points = [point for point in curve.points if math.isfinite(getattr(point, cost)) and getattr(point, cost) > 0]
        axes.errorbar(
            [getattr(point, cost) for point in points],
            [100 * point.quality for point in points],
            yerr=[100 * point.spread for point in points],
            color=_COLORS[index % len(_COLORS)],
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=5,
            linewidth=1.8,
            capsize=3,
            label=curve.name,
        )
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)


def _caption(result: ParetoResult) -> str:
    seeds = sorted({point.seeds for curve in result.curves for point in curve.points})
    missing = f"; not run: {', '.join(result.missing)}" if result.missing else ""
    counted = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return (
        f"{', '.join(result.tasks)}; profile {result.profile}, means and standard deviations over {counted} "
        f"fine-tuning seeds{missing}"
    )


def frontier(curves: Sequence[Curve], cost: str = "seconds") -> list[tuple[str, Point]]:
    """The points that no cheaper or equally cheap one matches, cheapest first, with their curve's name."""
    ordered = sorted(
        ((curve.name, point) for curve in curves for point in curve.points),
        key=lambda named: (getattr(named[1], cost), -named[1].quality),
    )
    best, front = -math.inf, []
    for name, point in ordered:
        if point.quality > best:
            best = point.quality
            front.append((name, point))
    return front
