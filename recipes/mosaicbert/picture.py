"""The paper's picture at our scale: held-out loss against training time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.mosaicbert.arms import ARMS

_COLORS = {
    "mosaicbert": "#d1495b",
    "bert": "#222222",
    "alibi": "#00798c",
    "geglu": "#edae49",
    "unpadding": "#66a182",
    "masked_head": "#8d6fb8",
    "mask_rate": "#2e86de",
}


def draw(runs: Sequence[dict[str, Any]], folder: Path, caption: str) -> None:
    """Write loss_vs_time.svg and .png: on the left the curves, on the right the gaps after equal time."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "terrazzo"
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.6), gridspec_kw={"width_ratios": [1.25, 1]})
    for run in runs:
        if run["arm"] in ("mosaicbert", "bert") or run["seed"] == 0:
            _line(left, run)
    left.set_xlabel("training time on one core (s)")
    left.set_ylabel("held-out MLM loss (nats a token)")
    shown = [point["heldout_loss"] for run in runs for point in run["curve"][1:]]
    left.set_ylim(min(shown) - 0.1, max(shown) + 0.1)
    left.legend(frameon=False, fontsize=8, title="dashed: one ingredient taken out", title_fontsize=8)
    left.grid(alpha=0.25)
    _bars(right, runs)
    figure.suptitle(caption, fontsize=10)
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "loss_vs_time.svg", metadata={"Date": None})
    figure.savefig(folder / "loss_vs_time.png", dpi=130)
    pyplot.close(figure)


def _line(axes: Any, run: dict[str, Any]) -> None:
    main = run["arm"] in ("mosaicbert", "bert")
    axes.plot(
        [point["seconds"] for point in run["curve"][1:]],
        [point["heldout_loss"] for point in run["curve"][1:]],
        color=_COLORS[run["arm"]],
        linewidth=2.2 if main else 1.1,
        linestyle="-" if main else "--",
        marker="o" if main else None,
        markersize=3,
        label=ARMS[run["arm"]].label if run["seed"] == 0 else None,
    )


def _bars(axes: Any, runs: Sequence[dict[str, Any]]) -> None:
    best = next((run for run in runs if run["arm"] == "mosaicbert" and run["seed"] == 0), None)
    others = [run for run in runs if run["seed"] == 0 and run["arm"] != "mosaicbert"]
    if best is None or not others:
        return
    final = best["curve"][-1]["heldout_loss"]
    gaps = [run["curve"][-1]["heldout_loss"] - final for run in others]
    rows = range(len(others))
    axes.barh(rows, gaps, color=[_COLORS[run["arm"]] for run in others], height=0.6)
    axes.set_yticks(rows, [ARMS[run["arm"]].label for run in others], fontsize=9)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("loss above MosaicBERT's after the same time (nats), seed 0")
    axes.grid(axis="x", alpha=0.25)
