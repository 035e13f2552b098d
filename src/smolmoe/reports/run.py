"""`smolmoe report`: one page on the content of folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from smolmoe.core.files import followed
from smolmoe.errors import OutputError
from smolmoe.reports.overview import Overview, find
from smolmoe.reports.overview_page import check_page, write_overview


def report(folders: Sequence[str | Path], out: str | Path, *, overwrite: bool = False) -> Overview:
    """Write one page on the runs, models, probes and measurements in these folders; returns what was found.

    Args:
        folders: of runs, pipelines, models, probes, or result files such as compare.json.
        out: the page, a self-contained .html file.
        overwrite: replace a file that is not a page of smolmoe.

    Raises:
        DataError: no such folder, or nothing from smolmoe in it.
        CheckpointError: a file has an unsupported schema.
        OutputError: another file is at `out`.
    """
    if followed(out) in {Path(os.path.realpath(folder)) for folder in folders}:
        raise OutputError("is an input of the report.", field="out", value=str(out), fix="Name a new file.")
    check_page(Path(out), overwrite=overwrite)
    found = find([Path(folder) for folder in folders])
    write_overview(found, Path(out), overwrite=overwrite)
    return found
