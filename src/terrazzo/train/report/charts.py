"""Line charts and histograms as inline SVG.

The drawing stretches to the width of the page and the lettering stays HTML, so that a chart reads as well on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from terrazzo.train.report.markup import Html, join, tag
from terrazzo.train.report.scales import Scale, thin, time_ticks
from terrazzo.train.units import duration, short, significant

_SIDE = 10_000  # of the square that is stretched over the plot
_STRIPS = 60


@dataclass(frozen=True)
class Series:
    """Numbers over x, ascending; NaN where there is none.

    Args:
        look: "raw" is a faint line that keeps every peak, "line" a strong one, "points" are dots joined by a thin line.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    look: str = "line"


@dataclass(frozen=True)
class XAxis:
    """What runs along the bottom."""

    key: str
    label: str
    show: Callable[[float], str] = short


@dataclass(frozen=True)
class Figure:
    """What a chart shows whatever its x-axis.

    Args:
        from_zero: the y-axis starts at 0; else it covers the numbers.
        tall: the chart that the page is about.
    """

    title: str
    unit: str
    show: Callable[[float], str] = significant
    from_zero: bool = False
    tall: bool = False


def chart(figure: Figure, axis: XAxis, series: Sequence[Series], marks: Sequence[tuple[float, str]] = ()) -> Html:
    """A figure over one x-axis; empty where no series has a number."""
    drawn = [s for s in series if np.isfinite(s.y).any()]
    if not drawn:
        return Html("")
    x_scale = _x_scale(drawn)
    y_scale = _y_scale(drawn, figure.from_zero)
    lines = [tag("path", d=_rules(y_scale), class_="grid")]
    lines += [tag("path", d=f"M{_round(x_scale(x))} 0V{_SIDE}", class_="mark") for x, _ in marks]
    lines += [path for s in drawn for path in _paths(s, x_scale, y_scale)]
    names = [tag("span", name, style=f"left:{100 * float(x_scale(x)):.2f}%") for x, name in marks]
    plot = tag(
        "div",
        tag("svg", *lines, viewBox=f"0 0 {_SIDE} {_SIDE}", preserveAspectRatio="none", aria_hidden="true"),
        tag("div", *names, class_="marks") if names else None,
        _strips(drawn, x_scale, axis, figure),
        class_="plot",
    )
    return _frame(figure, axis, drawn, plot, x_scale, y_scale)


def histogram(figure: Figure, axis: XAxis, edges: np.ndarray, shares: np.ndarray, mark: tuple[float, str] | None) -> Html:
    """Bars over bins whose `edges` grow by a factor, on a logarithmic x-axis."""
    x_scale, y_scale = Scale(float(edges[0]), float(edges[-1]), log=True), Scale(0.0, 1.05 * float(shares.max()))
    places, heights = _round(x_scale(edges)), _round(1 - y_scale(shares))
    bars = [
        tag("rect", x=a, y=top, width=max(b - a - 25, 1), height=_SIDE - top)
        for a, b, top in zip(places[:-1], places[1:], heights, strict=True)
        if top < _SIDE
    ]
    lines = [tag("path", d=_rules(y_scale), class_="grid"), tag("g", *bars, class_="bars")]
    name = None
    if mark is not None and edges[0] < mark[0] < edges[-1]:
        lines.append(tag("path", d=f"M{_round(x_scale(mark[0]))} 0V{_SIDE}", class_="mark"))
        name = tag("div", tag("span", mark[1], style=f"left:{100 * float(x_scale(mark[0])):.2f}%"), class_="marks")
    svg = tag("svg", *lines, viewBox=f"0 0 {_SIDE} {_SIDE}", preserveAspectRatio="none", aria_hidden="true")
    return _frame(figure, axis, [], tag("div", svg, name, class_="plot"), x_scale, y_scale)


def _x_scale(series: Sequence[Series]) -> Scale:
    high = max(float(s.x[-1]) for s in series)
    low = min(float(s.x[0]) for s in series)
    low = 0.0 if low < 0.25 * high else low
    return Scale(low, high if high > low else low + 1)


def _y_scale(series: Sequence[Series], from_zero: bool) -> Scale:
    values = np.concatenate([s.y[np.isfinite(s.y)] for s in series])
    low, high = float(values.min()), float(values.max())
    if from_zero:
        return Scale(min(low, 0.0), 1.08 * high if high > 0 else 1.0)
    if low > 0 and high / low > 100:
        return Scale(low / 1.1, high * 1.1, log=True)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return Scale(low - margin, high + margin)


def _paths(series: Series, x_scale: Scale, y_scale: Scale) -> list[Html]:
    x, y = (series.x, series.y) if series.look == "points" else thin(series.x, series.y, series.look == "raw")
    places, heights = x_scale(x), 1 - y_scale(y)
    if series.look == "points" or len(x) == 1:
        dots = "".join(
            f"M{_round(a)} {_round(b)}h0" for a, b in zip(places, heights, strict=True) if math.isfinite(b)
        )
        kind = "heldout" if series.look == "points" else series.look
        return [tag("path", d=_polyline(places, heights), class_=kind), tag("path", d=dots, class_=f"{kind} dots")]
    return [tag("path", d=_polyline(places, heights), class_=series.look)]


def _polyline(x: np.ndarray, y: np.ndarray) -> str:
    """An SVG path that lifts the pen where y is not finite."""
    parts, pen_down = [], False
    for a, b in zip(x, y, strict=True):
        if math.isfinite(b):
            parts.append(f"{'L' if pen_down else 'M'}{_round(a)} {_round(b)}")
        pen_down = math.isfinite(b)
    return "".join(parts)


def _round(values: np.ndarray | float) -> np.ndarray:
    return np.rint(np.asarray(values) * _SIDE).astype(int)


def _rules(y_scale: Scale) -> str:
    return "".join(f"M0 {_round(1 - y_scale(t))}H{_SIDE}" for t in y_scale.ticks())


def _strips(series: Sequence[Series], x_scale: Scale, axis: XAxis, figure: Figure) -> Html:
    """Invisible columns over the plot; the one under the pointer shows the numbers there."""
    width = (x_scale.high - x_scale.low) / _STRIPS
    named = [s for s in series if s.look != "raw"]
    columns = []
    for i in range(_STRIPS):
        centre = x_scale.low + (i + 0.5) * width
        figures = [text for s in named if (text := _value_at(s, centre, width, figure))]
        label = f"{axis.show(centre)} {axis.key}" if axis.show is short else axis.show(centre)
        columns.append(tag("i", tag("b", " · ".join([label, *figures])) if figures else None))
    return tag("div", *columns, class_="strips")


def _value_at(series: Series, x: float, width: float, figure: Figure) -> str:
    index = int(np.searchsorted(series.x, x))
    if series.look == "points":
        index = int(np.searchsorted(series.x, x + width / 2)) - 1
    elif index == len(series.x) or (index and x - series.x[index - 1] < series.x[index] - x):
        index -= 1
    if index < 0 or not math.isfinite(series.y[index]):
        return ""
    return f"{series.name} {figure.show(float(series.y[index]))}"


def _frame(figure: Figure, axis: XAxis, series: Sequence[Series], plot: Html, x_scale: Scale, y_scale: Scale) -> Html:
    keys = [tag("span", s.name, class_="heldout" if s.look == "points" else s.look) for s in series]
    caption = tag(
        "figcaption",
        tag("strong", figure.title),
        " ",
        tag("span", figure.unit, class_="unit") if figure.unit else None,
        tag("span", *keys, class_="keys") if len(keys) > 1 else None,
    )
    x_ticks = time_ticks(x_scale.low, x_scale.high) if axis.show is duration else x_scale.ticks()
    below = [_label(axis.show(t), "left", float(x_scale(t)), t == x_ticks[-1]) for t in x_ticks]
    beside = [_label(figure.show(t), "top", 1 - float(y_scale(t))) for t in y_scale.ticks()]
    widest = max((len(figure.show(t)) for t in y_scale.ticks()), default=1)
    grid = tag(
        "div",
        tag("div", *beside, class_="y"),
        plot,
        tag("div", *below, class_="x"),
        tag("div", axis.label, class_="xname"),
        class_="chart tall" if figure.tall else "chart",
        style=f"--gutter:{widest + 1}ch",
    )
    return tag("figure", caption, grid)


def _label(text: str, side: str, place: float, last: bool = False) -> Html:
    return tag("span", text, style=f"{side}:{100 * place:.2f}%", class_="end" if last and place > 0.96 else None)


def switched(axes: Sequence[XAxis], panes: Sequence[Html]) -> Html:
    """One pane for each x-axis and the buttons that choose between them, without a script."""
    buttons = [
        tag("input", type="radio", name="x", id=f"x-{axis.key}", checked=index == 0) for index, axis in enumerate(axes)
    ]
    labels = [tag("label", axis.key, for_=f"x-{axis.key}") for axis in axes]
    shown = [tag("div", pane, class_=f"pane p-{axis.key}") for axis, pane in zip(axes, panes, strict=True)]
    return tag("div", *buttons, tag("p", "Over ", *labels, class_="switch"), *shown, class_="switched")


def columns(*figures: Html) -> Html:
    """Small charts side by side, as many as fit."""
    return tag("div", *(f for f in figures if f), class_="charts") if any(figures) else join()
