"""docs/papers.md and the README's verdicts, from recipes/*/paper.toml and their results."""

from __future__ import annotations

from collections.abc import Sequence

from recipes.claims import Recipe
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
        parts += [f"{tier}: {origin(result['provenance'])}" for tier, result in recipe.results.items()]
    return "\n\n".join(parts) + "\n"


def claims_table(recipe: Recipe) -> str:
    """The paper's figures beside ours."""
    header = ("claim", "where", "the paper", "must hold here", "tier", "ours", "verdict")
    lines = [
        (c.id, c.where, c.paper, f"`{c.condition}`", c.tier, f"{c.metric} = {v.figure}" if v.seeds else "-", v)
        for c, v in recipe.verdicts()
    ]
    return table(header, lines)


def verdict_table(recipes: Sequence[Recipe]) -> str:
    """One line a claim, for the README."""
    lines = [
        (f"[{r.paper.slug}](docs/papers.md#{r.paper.slug})", c.paper, v.figure, v)
        for r in recipes
        for c, v in r.verdicts()
    ]
    return table(("paper", "its claim", "ours", "verdict"), lines) if lines else "No recipe has been run yet."
