"""Line charts and histograms as inline SVG.

The drawing stretches to the width of the page and the lettering stays HTML, so that a chart reads as well on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from terrazzo.train.report.markup import Html, join, tag
from terrazzo.train.report.scales import Scale, labels, thin, time_ticks
from terrazzo.train.units import duration, short, significant

_SIDE = 10_000  # of the square that is stretched over the plot
_STRIPS = 60
_LOOKS = {"raw": "every step", "line": "running mean", "heldout": "held-out documents"}


@dataclass(frozen=True)
class Series:
    """Numbers over x, ascending; NaN where there is none.

    Args:
        look: "raw" is a faint line that keeps every peak, "line" a strong one, "heldout" dots joined by a thin line.
        missing: mark where a number is missing.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    look: str = "line"
    missing: bool = False


@dataclass(frozen=True)
class XAxis:
    """What runs along the bottom: its key in a metrics line, its name on the switch, its label."""

    key: str
    name: str
    label: str
    show: Callable[[float], str] = short


@dataclass(frozen=True)
class Figure:
    """What a chart shows whatever its x-axis.

    Args:
        unit: beside the title. show: a number of it, for reading off.
        from_zero: the y-axis starts at 0; log: it is logarithmic where the numbers are positive and far apart.
        tall: the chart that the page is about.
    """

    title: str
    unit: str
    show: Callable[[float], str] = significant
    from_zero: bool = False
    log: bool = False
    tall: bool = False


def chart(figure: Figure, axis: XAxis, series: Sequence[Series], marks: Sequence[tuple[float, str]] = ()) -> Html:
    """A figure over one x-axis; empty where no series has a number."""
    drawn = [s for s in series if np.isfinite(s.y).any()]
    if not drawn:
        return Html("")
    x_scale = _x_scale(drawn)
    y_scale = _y_scale(drawn, figure)
    lines = [tag("path", d=_rules(y_scale), class_="grid")]
    lines += [tag("path", d=f"M{_round(x_scale(x))} 0V{_SIDE}", class_="mark") for x, _ in marks]
    lines += [path for s in drawn for path in _paths(s, x_scale, y_scale)]
    names = _names(marks, x_scale) if figure.tall else None
    return _frame(figure, axis, x_scale, y_scale, names, _svg(*lines), _strips(drawn, x_scale, axis, figure))


def histogram(
    figure: Figure, axis: XAxis, edges: np.ndarray, heights: np.ndarray, marks: Sequence[tuple[float, str]] = ()
) -> Html:
    """Bars over the bins between `edges`, with those `marks` that lie on them."""
    x_scale, y_scale = Scale(float(edges[0]), float(edges[-1])), Scale(0.0, 1.05 * float(heights.max()))
    places, tops = _round(x_scale(edges)), _round(1 - y_scale(heights))
    bars = [
        tag("rect", x=a, y=top, width=max(round(0.9 * (b - a)), 1), height=_SIDE - top)
        for a, b, top in zip(places[:-1], places[1:], tops, strict=True)
        if top < _SIDE
    ]
    inside = [mark for mark in marks if edges[0] < mark[0] < edges[-1]]
    lines = [tag("path", d=_rules(y_scale), class_="grid"), tag("g", *bars, class_="bars")]
    lines += [tag("path", d=f"M{_round(x_scale(x))} 0V{_SIDE}", class_="mark") for x, _ in inside]
    return _frame(figure, axis, x_scale, y_scale, _names(inside, x_scale), _svg(*lines))


def _x_scale(series: Sequence[Series]) -> Scale:
    high = max(float(s.x[-1]) for s in series)
    low = min(float(s.x[0]) for s in series)
    low = 0.0 if low < 0.25 * high or low == high else low
    return Scale(low, high if high > low else low + 1)


def _y_scale(series: Sequence[Series], figure: Figure) -> Scale:
    values = np.concatenate([s.y[np.isfinite(s.y)] for s in series])
    low, high = float(values.min()), float(values.max())
    if figure.from_zero:
        return Scale(min(low, 0.0), 1.08 * high if high > 0 else 1.0)
    if figure.log and low > 0 and high / low > 2:
        return Scale(low / 1.06, high * 1.06, log=True)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return Scale(low - margin, high + margin)


def _paths(series: Series, x_scale: Scale, y_scale: Scale) -> list[Html]:
    x, y = (series.x, series.y) if series.look == "heldout" else thin(series.x, series.y, series.look == "raw")
    places, heights = x_scale(x), 1 - y_scale(y)
    line = tag("path", d=_polyline(places, heights), class_=series.look)
    if series.missing and not np.isfinite(heights).all():
        gone = np.unique(_round(places[~np.isfinite(heights)]))
        line = join(line, tag("path", d="".join(f"M{a} {_SIDE}v-600" for a in gone), class_="gone"))
    if series.look == "heldout" or len(x) == 1:
        dots = "".join(f"M{_round(a)} {_round(b)}h0" for a, b in zip(places, heights, strict=True) if math.isfinite(b))
        return [line, tag("path", d=dots, class_=f"{series.look} dots")]
    return [line]


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
        label = axis.show(centre) if axis.show is duration else f"{axis.show(centre)} {axis.name}"
        columns.append(tag("i", tag("b", " · ".join([label, *figures])) if figures else None))
    return tag("div", *columns, class_="strips")


def _value_at(series: Series, x: float, width: float, figure: Figure) -> str:
    index = int(np.searchsorted(series.x, x))
    if series.look == "heldout":
        index = int(np.searchsorted(series.x, x + width / 2)) - 1
    elif index == len(series.x) or (index and x - series.x[index - 1] < series.x[index] - x):
        index -= 1
    if index < 0 or not math.isfinite(series.y[index]):
        return ""
    return f"{series.name} {figure.show(float(series.y[index]))}"


def _svg(*children: Html) -> Html:
    return tag("svg", *children, viewBox=f"0 0 {_SIDE} {_SIDE}", preserveAspectRatio="none", aria_hidden="true")


def _names(marks: Sequence[tuple[float, str]], x_scale: Scale) -> Html | None:
    """Names of the marks, each with the room up to the next mark; of one far to the right, to its left."""
    places = [100 * float(x_scale(x)) for x, _ in marks]
    if len(marks) == 1 and places[0] > 75:
        alone = tag("span", marks[0][1], style=f"right:{100 - places[0]:.2f}%;max-width:{places[0]:.2f}%")
        return tag("div", alone, class_="marks")
    rooms = [b - a for a, b in zip(places, [*places[1:], 100.0], strict=True)] if marks else []
    names = [
        tag("span", name, style=f"left:{place:.2f}%;max-width:{room:.2f}%")
        for (_, name), place, room in zip(marks, places, rooms, strict=True)
    ]
    return tag("div", *names, class_="marks") if names else None


def _frame(figure: Figure, axis: XAxis, x_scale: Scale, y_scale: Scale, names: Html | None, *drawn: Html) -> Html:
    unit = tag("span", figure.unit, class_="unit") if figure.unit else None
    log = tag("span", "logarithmic", class_="unit") if y_scale.log else None
    caption = tag("figcaption", tag("strong", figure.title), " ", unit, log)
    x_ticks = time_ticks(x_scale.low, x_scale.high) if axis.show is duration else x_scale.ticks()
    x_texts = [axis.show(t) for t in x_ticks] if axis.show is duration else labels(x_ticks)
    y_ticks = y_scale.ticks()
    y_texts = labels(y_ticks)
    below = [_label(text, "left", float(x_scale(t))) for t, text in zip(x_ticks, x_texts, strict=True)]
    beside = [_label(text, "top", 1 - float(y_scale(t))) for t, text in zip(y_ticks, y_texts, strict=True)]
    grid = tag(
        "div",
        tag("div", *beside, class_="y"),
        tag("div", *drawn, names, class_="plot"),
        tag("div", *below, class_="x"),
        tag("div", axis.label, class_="xname"),
        class_=" ".join(["chart", *(["tall"] if figure.tall else []), *(["named"] if names else [])]),
        style=f"--gutter:{max(map(len, y_texts), default=1) + 0.5}ch",
    )
    return tag("figure", caption, grid)


def _label(text: str, side: str, place: float) -> Html:
    at_end = side == "left" and place > 0.97
    return tag("span", text, style=f"{side}:{100 * place:.2f}%", class_="end" if at_end else None)


def switched(axes: Sequence[XAxis], panes: Sequence[Html]) -> Html:
    """One pane for each x-axis and the buttons that choose between them, without a script."""
    buttons = [
        tag("input", type="radio", name="x", id=f"x-{axis.key}", checked=index == 0) for index, axis in enumerate(axes)
    ]
    choices = [tag("label", axis.name, for_=f"x-{axis.key}") for axis in axes]
    shown = [tag("div", pane, class_=f"pane p-{axis.key}") for axis, pane in zip(axes, panes, strict=True)]
    keys = [tag("span", name, class_=look) for look, name in _LOOKS.items()]
    row = tag("div", tag("p", "Over ", *choices, class_="switch"), tag("p", *keys, class_="keys"), class_="row")
    return tag("div", *buttons, row, *shown, class_="switched")


def columns(*figures: Html) -> Html:
    """Small charts side by side, as many as fit."""
    return tag("div", *(f for f in figures if f), class_="charts") if any(figures) else join()
