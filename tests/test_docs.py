from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from benchmarks.result import Row
from scripts.docs.__main__ import pages
from scripts.docs.api import api_page
from scripts.docs.benchmarks import benchmark_table, benchmarks_page
from scripts.docs.markdown import ROOT, with_region

ROW = Row(id="C1", metric="tokens/s", peer="BERT", floor=4.0, goal=6.0, value=5.0, low=4.5, high=5.5)
MEMORY = Row(id="C2", metric="memory", peer="BERT", floor=0.5, goal=0.3, value=0.25, better="lower", note="one step")
GPU = Row(id="C10", metric="MFU", peer="peak", floor=40, goal=55, unit="%", status="not run (no GPU)")


def report(*rows):
    hardware = {"cpu": "Some CPU", "cpu_flags": ["avx2", "avx512f"], "cores": 2, "gpus": []}
    versions = {"torch": "2.13.0"}
    provenance = {"time": "2026-11-23T00:00:00", "commit": "abcdef0123456", "dirty": True, "versions": versions}
    rows = [dataclasses.asdict(row) for row in rows]
    return {"benchmark": "b", "rows": rows, "provenance": {**provenance, "hardware": hardware}}


def test_generated_pages_are_up_to_date():
    wanted = pages()
    stale = [path.relative_to(ROOT) for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    assert not stale, f"run `make docs`: {', '.join(map(str, stale))}"
    assert {path for path in (ROOT / "docs" / "api").glob("*.md")} <= set(wanted), "run `make docs`: a room is gone"


def test_benchmark_table_sorts_rows_and_shows_those_not_run():
    lines = benchmark_table([report(GPU), report(MEMORY, ROW)]).splitlines()[2:]
    assert lines == [
        "| C1 | tokens/s | BERT | ≥ 4x (6x) | 5x (4.5 to 5.5) | reaches the floor | 2 CPU cores, avx512f |",
        "| C2 | memory | BERT | ≤ 0.5x (0.3x) | 0.25x | reaches the goal | 2 CPU cores, avx512f |",
        "| C10 | MFU | peak | ≥ 40 % (55 %) |  | not run (no GPU) |  |",
    ]


def test_benchmarks_page_says_where_figures_come_from():
    page = benchmarks_page([report(MEMORY)])
    assert "2026-11-23, commit abcdef0123, with uncommitted changes, torch 2.13.0" in page
    assert "- C2: one step" in page


def test_a_region_is_replaced_and_must_exist():
    text = "a\n<!-- t:begin -->\nold\n<!-- t:end -->\nb"
    assert with_region(text, "t", "new") == "a\n<!-- t:begin -->\nnew\n<!-- t:end -->\nb"
    with pytest.raises(ValueError, match="no region"):
        with_region("a", "t", "new")


def test_api_page_follows_the_exports_of_a_room():
    page = api_page("nn")
    assert "class EncoderConfig:\n    vocab_size: int\n" in page
    assert "_sized" not in page


@pytest.mark.parametrize("page", ["README.md", "recipes/README.md", "benchmarks/README.md", "docs/design.md"])
def test_links_and_paths_lead_somewhere(page):
    source = ROOT / page
    text = source.read_text()
    links = [source.parent / link.split("#")[0] for link in re.findall(r"\]\((?!http)([^)]+)\)", text)]
    paths = [ROOT / path for path in re.findall(r"`((?:src|docs|tests|recipes|benchmarks)/[a-z\d_./]+)`", text)]
    missing = [str(path) for path in links + paths if not Path(path).exists()]
    assert not missing
