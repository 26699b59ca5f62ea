"""docs/papers.md and the README's verdicts, from recipes/*/paper.toml and their results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from recipes.claims import Recipe, Status
from scripts.docs.benchmarks import origin
from scripts.docs.markdown import NOTE, table


def papers_page(recipes: Sequence[Recipe]) -> str:
    """docs/papers.md: what is taken from each paper, and how its claims fare here."""
    overview = [
        (
            f"[{r.paper.title}](https://arxiv.org/abs/{r.paper.arxiv})",
            r.paper.takes,
            f"[{r.paper.slug}](#{r.paper.slug})",
        )
        for r in recipes
    ]
    intro = "The verdicts are computed from `recipes/*/results`; a claim that does not hold stays in the table."
    parts = [NOTE + "# Papers", intro, table(("paper", "what terrazzo takes from it", "claims"), overview)]
    for recipe in recipes:
        folder = recipe.folder.name
        parts += [f"## {recipe.paper.slug}", f"[How it was run](../recipes/{folder}/README.md)", claims_table(recipe)]
        parts += [f"{tier}: {origin(result['provenance'])} {_taken(result)}" for tier, result in recipe.results.items()]
    return "\n\n".join(parts) + "\n"


def _taken(result: Mapping[str, Any]) -> str:
    """How long the call ran that wrote a result; what an earlier one had trained, it found."""
    seconds = result["seconds"]
    return f"Its last call took {seconds:.0f} s." if seconds < 100 else f"Its last call took {seconds / 60:.0f} min."


def claims_table(recipe: Recipe) -> str:
    """The paper's figures beside ours."""
    header = ("claim", "where", "the paper", "must hold here", "tier", "ours", "verdict")
    lines = [
        (c.id, c.where, c.paper, f"`{c.condition}`", c.tier, f"{c.metric} = {v.figure}" if v.seeds else "-", v)
        for c, v in recipe.verdicts()
    ]
    return table(header, lines)


def verdict_table(recipes: Sequence[Recipe]) -> str:
    """One line a paper, for the README: what is taken from it, and how many of its claims fare how."""
    lines = []
    for recipe in recipes:
        count = Counter(verdict.status for _, verdict in recipe.verdicts())
        numbers = [str(count[status] or "") for status in get_args(Status)]
        slug = recipe.paper.slug
        lines.append((f"[{slug}](docs/papers.md#{slug})", recipe.paper.takes, *numbers))
    return table(("paper", "what terrazzo takes from it", *get_args(Status)), lines)
