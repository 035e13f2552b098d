"""report: one page on runs and measurements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smolmoe.cli.calling import typed
from smolmoe.cli.command import Command, Given
from smolmoe.cli.output import print_rows
from smolmoe.core import units
from smolmoe.reports.run import STDOUT, Report, report

if TYPE_CHECKING:
    from smolmoe.reports.overview import Overview


def _parts(found: Overview) -> tuple[dict[str, str], int]:
    """The missing sections with their commands, and the number of all sections."""
    from smolmoe.reports.overview_sections import sections

    parts = sections(found)
    return {part.title: part.command for part in parts if not part.html}, len(parts)


def show_report(made: Report, given: Given) -> None:
    """The files, the answers, and the missing sections; or the text alone if it goes to standard output."""
    from smolmoe.reports.overview_summary import answers

    if str(given.get("markdown")) == STDOUT:
        print(made.markdown, end="")
        return
    missing, count = _parts(made.found)
    for field, file in made.files.items():
        parts = f", {count - len(missing)} of {count} sections" if field == "out" else ""
        print(f"{file}: {units.size(file.stat().st_size)}{parts}")
    print_rows([(answer.question, f"{answer.headline}. {answer.sentence}") for answer in answers(made.found)])
    if missing:
        print("Missing, and the command that adds it:")
        print_rows([(title, typed(command)) for title, command in missing.items()])


def _to_json(made: Report, given: Given) -> dict[str, Any]:
    from smolmoe.reports.overview_summary import answers

    said = {answer.question: f"{answer.headline}. {answer.sentence}" for answer in answers(made.found)}
    head: dict[str, Any] = {"schema_version": 1, "kind": "report"}
    if (page := made.files.get("out")) is not None:
        head |= {"page": str(page), "bytes": page.stat().st_size}
    head |= {field: str(file) for field, file in made.files.items() if field != "out"}
    text = {"text": made.markdown} if str(given.get("markdown")) == STDOUT else {}
    return head | {"answers": said, "found": made.found.to_json(), "missing": _parts(made.found)[0]} | text


COMMAND = Command(
    report,
    show_report,
    as_options=("out",),
    names={"out": ("--out", "-o")},
    to_json=_to_json,
    doing="Writing the page",
)
