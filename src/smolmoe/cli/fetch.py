"""data fetch: known data sets as rows."""

from __future__ import annotations

from typing import Any

from smolmoe.cli.command import Command, Given
from smolmoe.cli.output import print_rows, table
from smolmoe.core import units
from smolmoe.verbs import train


def _show_catalogue(known: list[dict[str, Any]]) -> None:
    columns = ["preset", "data set", "licence", "rows", "columns"]
    rows = [
        [
            entry["preset"],
            entry["path"] + (f" ({entry['name']})" if entry["name"] else ""),
            entry["licence"] + ("" if entry["free"] else " (ask: --accept-licence)"),
            units.count(entry["size"]),
            ", ".join(entry["columns"]),
        ]
        for entry in known
    ]
    table("Presets (rows: about, of the split that is taken)", columns, rows)


def show_fetched(found: Any, given: Given) -> None:
    """The presets, or what was written."""
    if isinstance(found, list):
        _show_catalogue(found)
        return
    out = given["out"]
    domains = ", ".join(f"{name} {number}" for name, number in found["domains"].items())
    print_rows(
        [
            ("rows", f"{found['rows']} ({domains}) in {out}"),
            ("licence", found["licence"]),
            *(("left out", f"{number} rows: {reason}") for reason, number in found["left_out"].items()),
            ("columns", ", ".join(found["columns"])),
            ("to train on it", f"data.sources: [{{path: {out}}}]"),
        ]
    )


COMMAND = Command(train.fetch, show_fetched, as_options=("out",), to_json=lambda found, given: found)
