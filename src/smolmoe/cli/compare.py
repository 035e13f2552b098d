"""compare: models on the same held-out text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from smolmoe.cli.command import Command
from smolmoe.verbs import measure

if TYPE_CHECKING:
    from smolmoe.evaluation.compare.table import Table
    from smolmoe.results.comparison import Comparison

PLAIN_WIDTH = 200


def show_comparison(found: Comparison, out: Path | None) -> None:
    """The verdict, warnings, and the tables."""
    from smolmoe.evaluation.compare.table import notes, tables

    for sentence in found.verdict:
        print(sentence)
    for warning in found.warnings:
        print(f"  ! {warning}")
    print()
    for table in tables(found):
        _show_table(table)
    for note in notes(found):
        print(f"  {note}")
    print(f"  Computed on {found.device}.")
    if out is not None:
        print(f"\n{out}: compare.json, table.md")


def _show_table(table: Table) -> None:
    """Right-aligned figures; the best are bold, and marked."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    from smolmoe.evaluation.compare.table import BEST

    grid = Grid(title=table.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("")
    for column in table.columns:
        grid.add_column(Text(column), justify="right")
    for heading, rows in table.groups:
        grid.add_row(Text(heading, style="italic"))
        for row in rows:
            cells = zip(row.cells, row.best, strict=True)
            shown = (Text(f"{cell}{BEST if best else ' '}", style="bold" if best else "") for cell, best in cells)
            grid.add_row(Text(f"  {row.label}"), *shown)
        grid.add_section()
    Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH).print(grid)


COMMAND = Command(
    measure.compare,
    lambda found, given: show_comparison(found, given.get("out")),
    as_options=("data",),
)
