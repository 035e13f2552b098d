"""`smolmoe report`: one self-contained page on the content of folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from smolmoe.core.files import followed, made, place, write_text
from smolmoe.errors import OutputError
from smolmoe.reports.overview import Overview, find
from smolmoe.reports.overview_sections import sections
from smolmoe.reports.overview_summary import answers
from smolmoe.reports.page import MARK, Page


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
        DataError: no such folder, or nothing from smolmoe in it.
        CheckpointError: a file has an unsupported schema.
        OutputError: another file, or a folder, is at `out`, or the system refuses.
    """
    folders = [runs] if isinstance(runs, str | Path) else runs
    if followed(out) in {Path(os.path.realpath(folder)) for folder in folders}:
        raise OutputError("is an input of the report.", field="out", value=str(out), fix="Name a new file.")
    out = Path(out)
    _check_free(out, overwrite=overwrite)
    found = find([Path(folder) for folder in folders])
    text = overview_page(found).html()
    _check_free(out, overwrite=overwrite)
    with made(followed(out).parent):
        write_text(out, text)
    return found


def _check_free(out: Path, *, overwrite: bool) -> None:
    """Check that the page may be written there."""
    if followed(out).is_dir():
        fix = f"Name a file, such as {out / 'report.html'}."
        raise OutputError("is a folder.", field="out", value=str(out), fix=fix)
    is_there = place(out, "file").exists()
    if is_there and not overwrite and MARK not in out.read_text(encoding="utf-8", errors="replace")[:4000]:
        fix = "Name a new file, or use `overwrite=True`."
        raise OutputError("another file is there.", field="out", value=str(out), fix=fix)


def overview_page(found: Overview) -> Page:
    """The page."""
    title = _title(found)
    return Page(
        kicker="smolmoe report",
        title=title,
        window=f"{title}: report",
        about=", ".join(folder.name or str(folder) for folder in found.folders),
        sections=sections(found),
        footer="Written by smolmoe from the output of its commands. This page loads nothing from the network.",
        answers=answers(found),
    )


def _title(found: Overview) -> str:
    main = found.main
    names = [folder.resolve().name for folder in found.folders]
    return names[0] if len(names) == 1 else main[0] if main else " and ".join(names)
