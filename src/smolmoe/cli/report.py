"""report: one page on runs and measurements."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolmoe.cli.calling import typed
from smolmoe.cli.command import Command, Given
from smolmoe.cli.output import print_rows
from smolmoe.core import units
from smolmoe.reports.run import report

if TYPE_CHECKING:
    from smolmoe.reports.overview import Overview


def _parts(found: Overview) -> tuple[dict[str, str], int]:
    """The missing sections with their commands, and the number of all sections."""
    from smolmoe.reports.overview_sections import sections

    parts = sections(found)
    return {part.title: part.command for part in parts if not part.html}, len(parts)


def show_report(found: Overview, given: Given) -> None:
    """The page, its answers, and the missing sections."""
    from smolmoe.reports.overview_summary import answers

    missing, count = _parts(found)
    page = Path(given["out"])
    print(f"{page}: {units.size(page.stat().st_size)}, {count - len(missing)} of {count} sections")
    print_rows([(answer.question, f"{answer.headline}. {answer.sentence}") for answer in answers(found)])
    if missing:
        print("Missing, and the command that adds it:")
        print_rows([(title, typed(command)) for title, command in missing.items()])


def _to_json(found: Overview, given: Given) -> dict[str, Any]:
    from smolmoe.reports.overview_summary import answers

    said = {answer.question: f"{answer.headline}. {answer.sentence}" for answer in answers(found)}
    page = Path(given["out"])
    head = {"schema_version": 1, "kind": "report", "page": str(page), "bytes": page.stat().st_size}
    return head | {"answers": said, "found": found.to_json(), "missing": _parts(found)[0]}


COMMAND = Command(
    report,
    show_report,
    as_options=("out",),
    names={"out": ("--out", "-o")},
    to_json=_to_json,
    doing="Writing the page",
)
