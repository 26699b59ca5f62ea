"""The metric against the share of weights removed, and where it bends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from terrazzo.compression import SparsityCurve

_COLORS = ("#d1495b", "#00798c")


def draw(curves: Mapping[str, SparsityCurve], repeated: Mapping[float, list[float]], folder: Path) -> None:
    """Write curve.svg and curve.png into `folder`.

    Args:
        curves: whole curves by what they are called; a dashed line marks each one's knee.
        repeated: metrics of further seeds by sparsity, drawn as points.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "terrazzo"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.2))
    for place, ((name, curve), color) in enumerate(zip(curves.items(), _COLORS, strict=False)):
        removed = [100 * point.sparsity for point in curve.points]
        axes.plot(removed, [point.metric for point in curve.points], "o-", markersize=4, color=color, label=name)
        if curve.knee is not None:
            axes.axvline(100 * curve.knee, color=color, linestyle="--", linewidth=1)
            at = (100 * curve.knee + 1, 0.03 + 0.07 * place)
            axes.annotate(f"knee: {curve.knee:.0%}", at, xycoords=("data", "axes fraction"), color=color)
    for share, values in repeated.items():
        axes.plot([100 * share] * len(values), values, "x", color=_COLORS[0])
    axes.set_xlabel("weights of the blocks removed at once by magnitude (%)")
    axes.set_ylabel("accuracy (%); crosses: further seeds")
    axes.legend(frameon=False, fontsize=9)
    axes.grid(alpha=0.25)
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "curve.svg", metadata={"Date": None})
    figure.savefig(folder / "curve.png", dpi=130)
    pyplot.close(figure)
