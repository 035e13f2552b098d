"""data fetch: known data sets as rows."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from smolmoe.cli.command import Command, Given
from smolmoe.cli.output import print_rows, table
from smolmoe.core import units
from smolmoe.data.fetch import fetch

if TYPE_CHECKING:
    from smolmoe.results.fetched import Fetched, KnownDataSet

    Found = Fetched | tuple[KnownDataSet, ...]


def _show_catalogue(known: tuple[KnownDataSet, ...]) -> None:
    columns = ["preset", "data set", "licence", "rows", "columns"]
    rows = [
        [
            entry.preset,
            entry.path + (f" ({entry.name})" if entry.name else ""),
            entry.licence + ("" if entry.free else " (ask: --accept-licence)"),
            units.count(entry.size),
            ", ".join(entry.columns),
        ]
        for entry in known
    ]
    table("Presets (rows: about, of the split that is taken)", columns, rows)


def _show(found: Found, given: Given) -> None:
    if isinstance(found, tuple):
        _show_catalogue(found)
        return
    out = given["out"]
    domains = ", ".join(f"{name} {number}" for name, number in found.domains.items())
    print_rows(
        [
            ("rows", f"{found.rows} ({domains}) in {out}"),
            ("licence", found.licence),
            *(("left out", f"{number} rows: {reason}") for reason, number in found.left_out.items()),
            ("columns", ", ".join(found.columns)),
            ("to train on it", f"data.sources: [{{path: {out}}}]"),
        ]
    )


def _to_json(found: Found, given: Given) -> Any:
    return list(map(asdict, found)) if isinstance(found, tuple) else found.to_json()


COMMAND = Command(fetch, _show, as_options=("out",), to_json=_to_json)
