"""The page about a family: points lost against measured speed, every member a dot, and a table."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import numpy as np

from terrazzo.compression.proof_file import Proof
from terrazzo.compression.report import REPORT
from terrazzo.provenance import write_text_atomic
from terrazzo.train.report.charts import Figure, Series, XAxis, chart
from terrazzo.train.report.markup import Html, page, section, table, tag
from terrazzo.train.units import significant


def write_family_report(folder: Path, proofs: Mapping[str, Proof], missed: Mapping[str, str]) -> Path:
    """Write a page that needs no network.

    Args:
        proofs: of the proved members; missed: why others were not reached or not proved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    style = files("terrazzo.train.report").joinpath("style.css").read_text(encoding="utf-8")
    name = folder.resolve().name
    header = tag("header", tag("p", "terrazzo compress", class_="kind"), tag("h1", name), _verdict(proofs, missed))
    body = tag("main", header, _frontier(proofs), _members(proofs), _missed(missed))
    write_text_atomic(folder / REPORT, page(f"{name} – terrazzo", style, body))
    return folder / REPORT


def _verdict(proofs: Mapping[str, Proof], missed: Mapping[str, str]) -> Html:
    count = len(proofs) + len(set(missed) - set(proofs))
    proved = sum(proof.proved for proof in proofs.values())
    return tag("p", f"{proved} of {count} speeds reached and proved.", class_="verdict")


def _frontier(proofs: Mapping[str, Proof]) -> Html | None:
    measured = {name: proof for name, proof in proofs.items() if proof.speeds is not None}
    if not measured:
        return None
    factor = XAxis("faster", "times as fast", "times as fast as the fastest fp32 runtime", significant)
    points = sorted(
        (proof.speeds.faster, proof.quality.drop) for proof in measured.values() if proof.speeds is not None
    )
    line = Series(
        "members", np.array([1.0, *(x for x, _ in points)]), np.array([0.0, *(y for _, y in points)]), "heldout"
    )
    allowed = next(iter(measured.values())).goal.drop
    figure = chart(Figure("Points lost on the rows of the proof, against speed", "", tall=True), factor, [line], [])
    said = f"Allowed: {allowed:g} points. The dense model is at 1×, 0 points; the others are proved members."
    return section("Frontier", figure, tag("p", said, class_="aside"))


def _members(proofs: Mapping[str, Proof]) -> Html | None:
    if not proofs:
        return None
    head = ["member", "× fp32", "× plain PyTorch", "ms", "points lost", "at most (95 %)", "MB", "proved"]
    rows = []
    for name, proof in proofs.items():
        speeds, quality = proof.speeds, proof.quality
        times = ("–",) * 3 if speeds is None else (speeds.faster, speeds.faster_plain, speeds.ms)
        rows.append(
            [
                tag("a", name, href=f"{name}/{REPORT}"),
                *(one if isinstance(one, str) else f"{one:.2f}" for one in times),
                f"{quality.drop:.2f}",
                f"{quality.drop_most:.2f}",
                f"{proof.size.bytes / 1e6:.1f}",
                "yes" if proof.proved else "no",
            ]
        )
    again = tag("p", "Measure all of it again: ", tag("code", "terrazzo prove DIR"), class_="aside")
    return section("Members", table(head, rows, range(1, 7)), again)


def _missed(missed: Mapping[str, str]) -> Html | None:
    if not missed:
        return None
    return section("Not reached or not proved", table(["speed", "why"], [[name, why] for name, why in missed.items()]))
