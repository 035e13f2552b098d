"""compare: models side by side on the same held-out text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smolmoe.cli.output import Json, print_json, progress, quiet_libraries
from smolmoe.errors import RequestError

if TYPE_CHECKING:
    from smolmoe.evaluation.compare.table import Table
    from smolmoe.results.comparison import Comparison

PLAIN_WIDTH = 200


def add_to(app: typer.Typer) -> None:
    app.command()(compare)


def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=PATH[,PATH...]",
            help="A model's folder or a run's; several paths are seeds. The first model is the base.",
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="Held-out text: .jsonl, .parquet or .txt, a folder of them, a hub data set, or the folder of a run."
        ),
    ],
    by: Annotated[str | None, typer.Option(help="Column of a row's domain.  [default: all text as one]")] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Tokens to read of each domain.  [default: 20000, or as the run measured]")
    ] = None,
    document_tokens: Annotated[
        int | None, typer.Option(help="Tokens to read of one document.  [default: 1024, or as the run measured]")
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="Longest window that a model reads at a time.  [default: 256, or the run's]")
    ] = None,
    speed: Annotated[bool, typer.Option(help="Measure latency, tokens a second, and memory.")] = True,
    tasks: Annotated[
        Path | None, typer.Option(help="Task file of lm-evaluation-harness (.yaml) or a folder of them.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for compare.json and table.md.")] = None,
    device: Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, cuda:N or mps.")] = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a comparison that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Compare models on the same held-out text: losses with their intervals, cost, speed, and who wins at what."""
    quiet_libraries()
    from smolmoe.evaluation.compare.run import compare as compare_models

    with progress(not as_json) as report:
        found = compare_models(
            _named(models),
            data,
            by=by,
            tokens=tokens,
            document_tokens=document_tokens,
            length=length,
            speed=speed,
            tasks=tasks,
            out=out,
            overwrite=overwrite,
            device=device,
            report=report,
        )
    if as_json:
        print_json(found.to_json())
    else:
        show_comparison(found, out)


def _named(pairs: list[str]) -> dict[str, list[str]]:
    """NAME=PATH[,PATH...] by name.

    Raises:
        RequestError: something else was given, or a name twice.
    """
    found: dict[str, list[str]] = {}
    for pair in pairs:
        name, separator, paths = pair.partition("=")
        if not (name and separator and paths):
            raise RequestError(
                "must be NAME=PATH[,PATH...].", field="models", value=pair, fix="E.g. base=runs/dense moe=runs/moe."
            )
        if name in found:
            raise RequestError("is given twice.", field="models", value=name, fix="Several seeds are NAME=PATH,PATH.")
        found[name] = paths.split(",")
    return found


def show_comparison(found: Comparison, out: Path | None) -> None:
    """The verdict, what speaks against it, and the tables."""
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
    """Figures on the right, so that digits stand below each other; what no other beats is bold as well as marked."""
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
