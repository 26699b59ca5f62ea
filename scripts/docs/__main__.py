"""`python -m scripts.docs` writes docs/papers.md, docs/benchmarks.md, docs/api/*.md and the tables in README.md."""

from __future__ import annotations

from pathlib import Path

from recipes.claims import read_recipes
from scripts.docs.api import api_page, rooms
from scripts.docs.benchmarks import benchmarks_page, main_table, read_reports
from scripts.docs.markdown import ROOT, with_region
from scripts.docs.papers import papers_page, verdict_table
from terrazzo.provenance import write_text_atomic


def main() -> None:
    wanted = pages()
    for stale in set((ROOT / "docs" / "api").glob("*.md")) - set(wanted):
        stale.unlink()
        print(f"{stale.relative_to(ROOT)}: removed, the room is gone")
    for path, text in wanted.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text_atomic(path, text)
            print(f"{path.relative_to(ROOT)}: written")


def pages() -> dict[Path, str]:
    """Every generated page with the text that it should have."""
    recipes, reports = read_recipes(), read_reports()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    readme = with_region(readme, "benchmarks", main_table(reports))
    readme = with_region(readme, "papers", verdict_table(recipes))
    return {
        ROOT / "README.md": readme,
        ROOT / "docs" / "papers.md": papers_page(recipes),
        ROOT / "docs" / "benchmarks.md": benchmarks_page(reports),
        **{ROOT / "docs" / "api" / f"{room}.md": api_page(room) for room in rooms()},
    }


if __name__ == "__main__":
    main()
