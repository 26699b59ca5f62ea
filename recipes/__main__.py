"""`python -m recipes SLUG --tier small` runs a recipe; `python -m recipes --verdicts` shows what held."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from recipes.claims import TIERS, Recipe, read_recipe, read_recipes
from recipes.runner import Context, data_root, find, run
from terrazzo.errors import InputError, RunError

_TIERS_HELP = "smoke: seconds; small: minutes; downstream: fine-tuned models, up to an hour; paper: in full"


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 2 where the person's input cannot be used, 3 where a run could not go on."""
    options = parser().parse_args(arguments)
    try:
        recipes = read_recipes()
        if options.slug:
            recipe = find(recipes, options.slug)
            work = (options.work or Path("runs") / "recipes" / recipe.paper.slug / options.tier).resolve()
            work.mkdir(parents=True, exist_ok=True)
            root = data_root(options.data_root)
            context = Context(work=work, data_root=root.resolve() if root else None)
            path = run(recipe, options.tier, context, options.out)
            print(f"{path}: written")
            recipes = [read_recipe(recipe.folder)]
    except (InputError, RunError) as error:
        print(f"recipes: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 3
    Console().print(verdict_table(recipes))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m recipes", description="Check a paper's claims at our scale.")
    result.add_argument("slug", nargs="?", help="the recipe to run, e.g. mosaicbert; without it, show the verdicts")
    result.add_argument("--verdicts", action="store_true", help="show the verdicts (also what no argument does)")
    result.add_argument("--tier", choices=TIERS, default="smoke", help=_TIERS_HELP)
    result.add_argument("--data-root", type=Path, help="folder of downloaded data sets (default: $TERRAZZO_DATA)")
    result.add_argument("--work", type=Path, help="folder for data and runs (default: runs/recipes/SLUG/TIER)")
    result.add_argument("--out", type=Path, help="folder for the results file (default: the recipe's results/)")
    return result


def verdict_table(recipes: list[Recipe]) -> Table:
    """One row a claim."""
    table = Table("paper", "claim", "the paper", "ours", "verdict")
    for recipe in recipes:
        for claim, verdict in recipe.verdicts():
            table.add_row(recipe.paper.slug, claim.id, claim.paper, verdict.figure, str(verdict))
    return table


if __name__ == "__main__":
    sys.exit(main())
