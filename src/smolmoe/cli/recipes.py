"""recipes, recipes copy: what comes with smolmoe."""

from __future__ import annotations

import typer

from smolmoe.cli.command import Command
from smolmoe.cli.output import Json, print_json, table
from smolmoe.verbs import train as verbs

recipes_app = typer.Typer(add_completion=False, rich_markup_mode=None)


@recipes_app.callback(invoke_without_command=True)
def recipes(context: typer.Context, as_json: Json = False) -> None:
    """List the shipped recipes, or copy one."""
    if context.invoked_subcommand is not None:
        return
    from smolmoe.recipe.files import COMMANDS

    found = verbs.recipes()
    if as_json:
        print_json([{"name": r.name, "kind": r.kind, "about": r.about} for r in found])
        return
    table("Recipes", ("name", "command", "description"), [(r.name, COMMANDS[r.kind], r.about) for r in found])
    print("`smolmoe recipes copy NAME` copies one here to edit it; `--set section.key=value` changes a value.")


recipes.verb = verbs.recipes  # type: ignore[attr-defined]
Command(
    verbs.copy_recipe,
    lambda path, given: print(path),
    name="copy",
    as_options=("out",),
    to_json=lambda path, given: path,
).add_to(recipes_app)
