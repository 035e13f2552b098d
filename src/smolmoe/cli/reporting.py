"""report: one page on everything that was made and measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smolmoe.cli.output import Json, print_json, print_rows, quiet_libraries
from smolmoe.core import units


def add_to(app: typer.Typer) -> None:
    app.command()(report)


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_DIR...",
            help="Folders of runs, pipelines, models or probes, or files such as compare.json.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page; it needs nothing beside it.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file there that is no report.")] = False,
    as_json: Json = False,
) -> None:
    """Write one page that opens offline on what these folders hold: what was made, what it costs, whether it wins."""
    quiet_libraries()
    from smolmoe.reports.overview_sections import sections
    from smolmoe.reports.overview_summary import answers
    from smolmoe.reports.run import report as write

    found = write(runs, out, overwrite=overwrite)
    parts = sections(found)
    missing = {part.title: part.command for part in parts if not part.html}
    if as_json:
        said = {given.question: f"{given.headline}. {given.sentence}" for given in answers(found)}
        page = {"schema_version": 1, "kind": "report", "page": str(out), "bytes": out.stat().st_size}
        print_json(page | {"answers": said, "found": found.to_json(), "missing": missing})
        return
    print(f"{out}: {units.size(out.stat().st_size)}, {len(parts) - len(missing)} of {len(parts)} sections")
    print_rows([(given.question, f"{given.headline}. {given.sentence}") for given in answers(found)])
    if missing:
        print("Missing, and what makes it:")
        print_rows(list(missing.items()))
