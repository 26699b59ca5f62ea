"""How much fuller the fullest rank is than the mean, under each rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

RULES = {"naive": "stream order", "serpentine": "sorted, dealt in turn (the paper)", "lpt": "by tokens, LPT (ours)"}
_COLORS = {"naive": "#8d99ae", "serpentine": "#edae49", "lpt": "#d1495b"}


def draw(metrics: Mapping[int, Mapping[str, float]], layouts: Sequence[tuple[int, int]], folder: Path) -> None:
    """Write balance.svg and balance.png into `folder`: means over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "terrazzo"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4))
    for offset, (rule, label) in enumerate(RULES.items()):
        means = [np.mean([m[f"{rule}_{r}x{d}"] for m in metrics.values()]) for r, d in layouts]
        idle = [100 * (1 - 1 / mean) for mean in means]
        bars = axes.bar(np.arange(len(layouts)) + 0.27 * (offset - 1), idle, 0.25, color=_COLORS[rule], label=label)
        axes.bar_label(bars, fmt="%.1f", fontsize=8)
    axes.set_xticks(range(len(layouts)), [f"{ranks} x {documents}" for ranks, documents in layouts])
    axes.set_xlabel("ranks x documents a rank")
    axes.set_ylabel("time that the mean rank waits (%)")
    axes.legend(frameon=False, fontsize=9)
    axes.grid(axis="y", alpha=0.25)
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "balance.svg", metadata={"Date": None})
    figure.savefig(folder / "balance.png", dpi=130)
    pyplot.close(figure)
