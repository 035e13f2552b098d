"""recipes, recipes copy: the shipped recipes."""

from __future__ import annotations

from typing import Any

import typer

from smolmoe.cli.calling import as_typed
from smolmoe.cli.command import Command
from smolmoe.cli.output import Json, print_json, table
from smolmoe.recipe.files import COMMANDS, copy_recipe, recipes


def _recipes(context: typer.Context, as_json: Json = False) -> None:
    if context.invoked_subcommand is not None:
        return
    found = recipes()
    if as_json:
        print_json([{"name": r.name, "kind": r.kind, "about": r.about} for r in found])
        return
    rows = [(r.name, COMMANDS[r.kind].removeprefix("smolmoe "), r.about) for r in found]
    table("Recipes", ("name", "command", "description"), rows)
    print(as_typed("`smolmoe train NAME` or `smolmoe run NAME` starts one; `--set section.key=value` changes a value."))
    print(as_typed("`smolmoe recipes copy NAME` copies one here to edit it."))


_recipes.verb = recipes  # type: ignore[attr-defined]
COPY = Command(copy_recipe, lambda path, given: print(path), as_options=("out",), to_json=lambda path, given: path)


class _Recipes:
    """A command with another below it; built as a `Command` is."""

    def build(self, name: str) -> Any:
        app = typer.Typer(name=name, help=recipes.__doc__, add_completion=False, rich_markup_mode=None)
        app.callback(invoke_without_command=True)(_recipes)
        COPY.add_to(app, "copy")
        return typer.main.get_command(app)


COMMAND = _Recipes()
