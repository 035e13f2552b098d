"""Groups of commands. A command is imported when it is chosen: its name and summary are known without it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

import smolmoe


class Commands(Mapping[str, Any]):
    """The commands of a group, each built when it is looked up.

    Args:
        entries: name -> a group, or the public function that the command calls. Its `COMMAND` is in the file of that
            name in cli/.
    """

    def __init__(self, entries: Mapping[str, str | TyperGroup]):
        self._entries = entries

    def __getitem__(self, name: str) -> Any:
        entry = self._entries[name]
        return entry if isinstance(entry, TyperGroup) else import_module(f"smolmoe.cli.{entry}").COMMAND.build(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def summary(self, name: str) -> str:
        """The line about a command in the help of its group."""
        entry = self._entries[name]
        return str(entry.help) if isinstance(entry, TyperGroup) else _summary(entry)


class Group(TyperGroup):
    """A group that lists its commands under headings, each with its whole summary.

    Args:
        headings: heading -> entries, as `Commands` takes them.
    """

    def __init__(self, headings: Mapping[str, Mapping[str, str | TyperGroup]], **options: Any):
        commands = Commands({name: entry for entries in headings.values() for name, entry in entries.items()})
        super().__init__(**options | {"commands": commands, "no_args_is_help": True, "rich_markup_mode": None})
        self._headings = headings

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for heading, names in self._headings.items():
            with formatter.section(heading):
                formatter.write_dl([(name, self.commands.summary(name)) for name in names])  # type: ignore[attr-defined]


def _summary(verb: str) -> str:
    """The first line of a public function's docstring."""
    return _summaries(smolmoe.module_of(verb))[verb]


@cache
def _summaries(module: str) -> dict[str, str]:
    """Of the functions of a module, from its source: to import it would build the models of its recipes."""
    path = Path(smolmoe.__file__).parents[1].joinpath(*module.split(".")).with_suffix(".py")
    functions = [node for node in ast.parse(path.read_bytes()).body if isinstance(node, ast.FunctionDef)]
    return {function.name: (ast.get_docstring(function) or "").partition("\n")[0] for function in functions}
