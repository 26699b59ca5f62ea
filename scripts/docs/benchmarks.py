"""docs/benchmarks.md and the README's table, from benchmarks/results/*.json."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.result import Row
from scripts.docs.markdown import NOTE, ROOT, table

#: What the README shows, beside all that is below its floor.
MAIN = ("C1", "C2", "C7", "C12", "F1", "F2", "M1", "I1", "I3", "K1", "K2", "K3", "K6", "K7", "S8", "S2", "H1")


def read_reports(folder: Path = ROOT / "benchmarks" / "results") -> list[dict[str, Any]]:
    """The results files of all benchmarks, by name."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def main_table(reports: Sequence[dict[str, Any]]) -> str:
    """The rows for the README, as far as they were run, and all that are below their floors."""
    rows = {row["id"]: Row(**row) for report in reports for row in report["rows"]}
    below = sorted((name for name, row in rows.items() if row.verdict.startswith("below")), key=_natural)
    names = [*MAIN, *(name for name in below if name not in MAIN)]
    chosen = [rows[name] for name in names if name in rows and rows[name].measured]
    lines = [(row.id, row.metric, row.peer, marks(row), measured(row), row.verdict) for row in chosen]
    return table(("", "what", "beside", "floor (goal)", "measured (95 %)", "verdict"), lines)


def benchmark_table(reports: Sequence[dict[str, Any]]) -> str:
    """All rows of all benchmarks, by row id."""
    rows = [(Row(**row), report["provenance"]) for report in reports for row in report["rows"]]
    if not rows:
        return "No benchmark has been run yet."
    rows.sort(key=lambda pair: _natural(pair[0].id))
    header = ("", "what", "beside", "floor (goal)", "measured (95 %)", "verdict", "on")
    lines = [
        (
            row.id,
            row.metric,
            row.peer,
            marks(row),
            measured(row),
            row.verdict,
            machine(provenance) if row.measured else "",
        )
        for row, provenance in rows
    ]
    return table(header, lines)


def benchmarks_page(reports: Sequence[dict[str, Any]]) -> str:
    """docs/benchmarks.md: all rows, then where and how each benchmark was run."""
    parts = [
        NOTE + "# Benchmarks\n\nHow they are run: [benchmarks/README.md](../benchmarks/README.md).",
        benchmark_table(reports),
    ]
    for report in reports:
        notes = [f"- {row['id']}: {row['note']}" for row in report["rows"] if row["note"]]
        parts += [f"## {report['benchmark']}", origin(report["provenance"]), *(["\n".join(notes)] if notes else [])]
    return "\n\n".join(parts) + "\n"


def marks(row: Row) -> str:
    """Floor and goal."""
    if row.floor is None:
        return ""
    sign = "≥" if row.better == "higher" else "≤"
    goal = f" ({quantity(row.goal, row.unit)})" if row.goal is not None else ""
    return f"{sign} {quantity(row.floor, row.unit)}{goal}"


def measured(row: Row) -> str:
    """The value with its interval."""
    if row.value is None:
        return ""
    spread = f" ({row.low:.3g} to {row.high:.3g})" if row.low is not None and row.high is not None else ""
    return quantity(row.value, row.unit) + spread


def quantity(value: float, unit: str) -> str:
    """`3.9x`, `41 %`, `0.2 s`."""
    digits = 4 if 0.99 <= abs(value) < 1 else 3
    number = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"
    return f"{number}{unit}" if unit == "x" else f"{number} {unit}".rstrip()


def machine(provenance: dict[str, Any]) -> str:
    """The hardware in a few words."""
    hardware = provenance["hardware"]
    if hardware["gpus"]:
        return str(hardware["gpus"][0])
    flags = [flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in hardware["cpu_flags"]]
    return f"{hardware['cores']} CPU cores" + (f", {flags[0]}" if flags else "")


def origin(provenance: dict[str, Any]) -> str:
    """One line on where results come from."""
    commit = (provenance["commit"] or "no checkout")[:10] + (
        ", with uncommitted changes" if provenance["dirty"] else ""
    )
    torch, cpu = provenance["versions"].get("torch", "none"), provenance["hardware"]["cpu"]
    return f"{provenance['time'][:10]}, commit {commit}, torch {torch}, {machine(provenance)} ({cpu})."


def _natural(name: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.findall(r"\d+|\D+", name)]
