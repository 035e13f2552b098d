"""`smolmoe report`: one page on everything that some folders hold."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from smolmoe.core.files import followed
from smolmoe.errors import OutputError

if TYPE_CHECKING:
    from smolmoe.reports.overview import Overview


def report(
    runs: Annotated[
        Sequence[str | Path] | str | Path,
        Field(description="folder of a run, pipeline, model or probe, or a file such as compare.json"),
    ],
    out: Annotated[str | Path, Field(description="output file, a self-contained HTML page")],
    *,
    overwrite: Annotated[bool, Field(description="replacement of another file at the output path")] = False,
) -> Overview:
    """Write one offline HTML page from runs and measurements.

    Raises:
        DataError: there is no such folder, or nothing of smolmoe's in it.
        CheckpointError: a file there is of a schema that is not read here.
        OutputError: another file is at `out`.
    """
    from smolmoe.reports.overview import find
    from smolmoe.reports.overview_page import check_page, write_overview

    folders = [runs] if isinstance(runs, str | Path) else runs
    if followed(out) in {Path(os.path.realpath(folder)) for folder in folders}:
        raise OutputError("is what it would report on.", field="out", value=str(out), fix="Name a new file.")
    check_page(Path(out), overwrite=overwrite)
    found = find([Path(folder) for folder in folders])
    write_overview(found, Path(out), overwrite=overwrite)
    return found
