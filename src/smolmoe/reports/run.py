"""`smolmoe report`: one self-contained page on the content of folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from smolmoe.core.files import followed, made, place, write_text
from smolmoe.errors import OutputError
from smolmoe.reports.overview import Overview, find
from smolmoe.reports.overview_sections import sections
from smolmoe.reports.overview_summary import answers
from smolmoe.reports.page import MARK, Page


def report(folders: Sequence[str | Path], out: str | Path, *, overwrite: bool = False) -> Overview:
    """Write one page on the runs, models, probes and measurements in these folders; returns what was found.

    Args:
        folders: of runs, pipelines, models, probes, or result files such as compare.json.
        out: the page, a self-contained .html file. An earlier page is replaced.
        overwrite: replace any other file too.

    Raises:
        DataError: no such folder, or nothing from smolmoe in it.
        CheckpointError: a file has an unsupported schema.
        OutputError: another file, or a folder, is at `out`, or the system refuses.
    """
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
