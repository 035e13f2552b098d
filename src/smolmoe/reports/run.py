"""`smolmoe report`: one page on everything that some folders hold."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smolmoe.core.files import followed
from smolmoe.errors import OutputError

if TYPE_CHECKING:
    from smolmoe.reports.overview import Overview


def report(folders: Sequence[str | Path], out: str | Path, *, overwrite: bool = False) -> Overview:
    """Write one page on what runs, models, probes and measurements in these folders say; returns what was found.

    Args:
        folders: of runs, pipelines, models, probes, or result files such as compare.json.
        out: the page, a self-contained .html file.
        overwrite: replace a file there that is not a page of ours.

    Raises:
        DataError: there is no such folder, or nothing of smolmoe's in it.
        CheckpointError: a file there is of a schema that is not read here.
        OutputError: another file is at `out`.
    """
    from smolmoe.reports.overview import find
    from smolmoe.reports.overview_page import check_page, write_overview

    if followed(out) in {Path(os.path.realpath(folder)) for folder in folders}:
        raise OutputError("is what it would report on.", field="out", value=str(out), fix="Name a new file.")
    check_page(Path(out), overwrite=overwrite)
    found = find([Path(folder) for folder in folders])
    write_overview(found, Path(out), overwrite=overwrite)
    return found
