"""OUT/report.html: the frontier of accuracy against speed and against size, what was chosen, and its proof."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np

from terrazzo.compression.goal import Goal
from terrazzo.compression.offers import Offer, Sketch
from terrazzo.compression.proof_file import Proof
from terrazzo.config import config, from_dict, read_file, to_dict
from terrazzo.provenance import write_json_atomic, write_text_atomic
from terrazzo.train.report.charts import Figure, Series, XAxis, chart, columns
from terrazzo.train.report.cost import machine_of
from terrazzo.train.report.markup import Child, Html, aside, facts, join, page, section, table, tag
from terrazzo.train.units import significant

REPORT, FRONTIER = "report.html", "frontier.json"
_FORMAT = "terrazzo-frontier-1"


@config
class Frontier:
    """What was made on the way to a goal, kept beside the model that was chosen."""

    offers: tuple[Offer, ...]
    sketches: tuple[Sketch, ...]


def write_frontier(folder: Path, offers: Sequence[Offer], sketches: Sequence[Sketch]) -> None:
    """Keep what a page shows beside its proof."""
    frontier = Frontier(offers=tuple(offers), sketches=tuple(sketches))
    write_json_atomic(folder / FRONTIER, {"format": _FORMAT, **to_dict(frontier)})


def rewrite_report(folder: Path, proof: Proof) -> None:
    """The page of a folder that `write_frontier` knows, with another proof.

    Raises:
        InputError: a frontier.json that does not parse.
    """
    file = folder / FRONTIER
    if file.is_file():
        values = {name: value for name, value in read_file(file).items() if name != "format"}
        found = from_dict(Frontier, values, str(file))
        write_report(folder, proof.goal, proof, found.offers, found.sketches, folder.resolve().name)


def write_report(
    folder: Path, goal: Goal, proof: Proof | None, offers: Sequence[Offer], sketches: Sequence[Sketch], name: str
) -> Path:
    """Write a page that needs no network.

    Args:
        proof: of the model in `folder`; None where no model reached the goal.
        name: what the page is about.
    """
    style = files("terrazzo.train.report").joinpath("style.css").read_text(encoding="utf-8")
    body = tag(
        "main",
        _header(goal, proof, name),
        _frontier(goal, proof, offers, sketches),
        _made(goal, offers, proof),
        _kept(offers if proof is None else offers[-1:]),
        _proof(proof),
        machine_of(proof.provenance, proof.rows) if proof is not None else None,
    )
    write_text_atomic(folder / REPORT, page(f"{name} – terrazzo", style, body))
    return folder / REPORT


def _header(goal: Goal, proof: Proof | None, name: str) -> Html:
    said = (
        tag("b", "No model reached it.")
        if proof is None
        else tag("b", "Proved." if proof.proved else f"Not proved: {'; '.join(proof.why)}.")
    )
    return tag(
        "header",
        tag("p", "terrazzo compress", class_="kind"),
        tag("h1", name),
        tag("p", f"Asked: {goal}. ", said, class_="verdict"),
        _figures(proof) if proof is not None else None,
    )


def _figures(proof: Proof) -> Html:
    quality, speeds = proof.quality, proof.speeds
    figures = []
    if speeds is not None:
        figures = [
            ("× the fastest fp32 runtime", f"{speeds.faster:.2f}"),
            ("× plain PyTorch", f"{speeds.faster_plain:.2f}"),
            (f"ms, {len(speeds.lengths)} texts", f"{speeds.ms:.2f}"),
        ]
    figures += [
        ("points lost", f"{quality.drop:.2f}"),
        ("points at most (95 %)", f"{quality.drop_most:.2f}"),
        ("× as small", f"{proof.size.smaller:.1f}"),
    ]
    return tag("div", *(tag("div", tag("b", value), tag("span", key)) for key, value in figures), class_="figures")


def _frontier(goal: Goal, proof: Proof | None, offers: Sequence[Offer], sketches: Sequence[Sketch]) -> Html:
    """Points lost over measured speed and over size."""
    title = "Points lost on the rows to choose by"
    drawn = [_dot("dense", 1.0, 0.0), *(_dot(one.name, one.faster, one.drop) for one in offers)]
    if sketches:
        drawn.append(
            _series("one-shot, speed predicted", [(1.0, 0.0), *((s.faster, s.drop) for s in sketches)], "line")
        )
    marks = [] if goal.faster is None else [(goal.faster, f"asked: {goal.faster:g}×")]
    if goal.under_ms is not None and offers:
        marks = [(offers[0].ms * offers[0].faster / goal.under_ms, f"asked: {goal.under_ms:g} ms")]
    factor = XAxis("faster", "times as fast", "times as fast as the fastest fp32 runtime", significant)
    small = XAxis("smaller", "times as small", "times as small as fp32", significant)
    left = chart(Figure(f"{title}, against speed", "", tall=True), factor, drawn, marks)
    sizes = [_dot("dense", 1.0, 0.0), *(_dot(one.name, one.smaller, one.drop) for one in offers)]
    bound = [] if goal.smaller is None else [(goal.smaller, f"asked: {goal.smaller:g}×")]
    right = chart(Figure(f"{title}, against size", "", tall=True), small, sizes, bound)
    points = "point" if goal.drop == 1 else "points"
    allowed = tag(
        "p",
        f"Allowed: {goal.drop:g} {points}. Dots are models that were made and measured; the line is one-shot "
        "models whose speed is predicted from the latency table. The dense model is at 1×, 0 points.",
        class_="aside",
    )
    return section("Frontier", columns(left, right), allowed)


def _dot(name: str, x: float, y: float) -> Series:
    return Series(name, np.array([x]), np.array([y]), "heldout")


def _series(name: str, points: Sequence[tuple[float, float]], look: str) -> Series:
    ordered = sorted(points)
    return Series(name, np.array([x for x, _ in ordered]), np.array([y for _, y in ordered]), look)


def _made(goal: Goal, offers: Sequence[Offer], proof: Proof | None) -> Html:
    head = ["model", "× fp32", "ms", "predicted ms", "× small", "points lost", "at most"]
    rows = [
        [
            one.name,
            f"{one.faster:.2f}",
            f"{one.ms:.2f}",
            "–" if one.predicted_ms is None else f"{one.predicted_ms:.2f}",
            f"{one.smaller:.1f}",
            f"{one.drop:.2f}",
            f"{one.drop_high:.2f}",
        ]
        for one in offers
    ]
    note = "" if proof is None else f"{why_chosen(goal, offers)} "
    return section(
        "What was made",
        table(head, rows, range(1, len(head))),
        tag(
            "p",
            f"{note}Points are on the rows that choices are made by; the proof has rows of its own.",
            class_="aside",
        ),
    )


def why_chosen(goal: Goal, offers: Sequence[Offer]) -> str:
    """Why the last of them is the one that was proved."""
    chosen, rivals = offers[-1], [one for one in offers[:-1] if one.meets(goal)]
    most = f"at most {chosen.drop_high:.2f} points lost on the rows to choose by"
    if not chosen.meets(goal):
        return f"Chosen: {chosen.name}, the last one, whose speed misses the goal by less than times differ; {most}."
    if not rivals:
        return f"Chosen: {chosen.name}, the last one, which alone reaches the goal; {most}."
    return (
        f"Chosen: {chosen.name}, the last one: of {len(rivals) + 1} that reach the goal the likeliest to be proved, by "
        f"speed and by points; {most}."
    )


def _kept(offers: Sequence[Offer]) -> Html | None:
    """Heads and units of every layer that the last cut model keeps, by its name."""
    cut = [one for one in offers if one.sizes]
    if not cut:
        return None
    sizes = cut[-1].sizes
    layers = sorted({int(site.partition(".")[2]) for site in sizes})
    rows = [
        [str(layer), str(sizes.get(f"heads.{layer}", "all")), str(sizes.get(f"units.{layer}", "all"))]
        for layer in layers
    ]
    return section(f"What each layer keeps: {cut[-1].name}", table(["layer", "heads", "units"], rows, {0, 1, 2}))


def _proof(proof: Proof | None) -> Html | None:
    if proof is None:
        return None
    quality, speeds = proof.quality, proof.speeds
    pairs: list[tuple[str, Child]] = []
    if speeds is not None:
        dense = f"dense: {speeds.fp32_ms:.2f} ms in {speeds.fp32_runtime}, {speeds.plain_ms:.2f} ms in plain PyTorch"
        pairs.append(("speed", join(f"{speeds.ms:.2f} ms a batch", aside(dense))))
        if speeds.predicted_ms is not None:
            error = speeds.predicted_ms / speeds.ms - 1
            pairs.append(("predicted", join(f"{speeds.predicted_ms:.2f} ms", aside(f"{100 * error:+.1f} %"))))
        lengths = f"{len(speeds.lengths)} texts of {min(speeds.lengths)} to {max(speeds.lengths)} tokens"
        pairs.append(("batch", f"{lengths}, on {proof.on.threads} thread{'s' * (proof.on.threads > 1)}"))
    interval = aside(f"95 % interval {quality.drop_low:.2f} to {quality.drop_high:.2f}, paired, {quality.rows:,} rows")
    pairs += [
        (quality.metric, f"{quality.dense:.2f} dense, {quality.small:.2f} compressed"),
        ("points lost", join(f"{quality.drop:.2f}", interval)),
        ("size", f"{proof.size.bytes / 1e6:.1f} MB of {proof.size.fp32_bytes / 1e6:.1f} MB in fp32"),
    ]
    again = tag("p", "Measure all of it again: ", tag("code", "terrazzo prove DIR"), class_="aside")
    return section("Proof", facts(pairs), again)
