"""The report as one self-contained page."""

from __future__ import annotations

from pathlib import Path

from smolmoe.core.files import followed, made, place, write_text
from smolmoe.errors import OutputError
from smolmoe.reports.overview import Overview
from smolmoe.reports.overview_sections import sections
from smolmoe.reports.overview_summary import answers
from smolmoe.reports.page import MARK, Page


def write_overview(found: Overview, out: Path, *, overwrite: bool = False) -> Path:
    """Write the page, replacing an earlier one of smolmoe; returns its path.

    Args:
        overwrite: replace any other file too.

    Raises:
        OutputError: another file, or a folder, is there, or the system refuses.
    """
    check_page(out, overwrite=overwrite)
    text = overview_page(found).html()
    with made(followed(out).parent):
        write_text(out, text)
    return out


def check_page(out: Path, *, overwrite: bool) -> None:
    """Check that the page may be written there, before anything is read.

    Raises:
        OutputError: as `write_overview`.
    """
    if followed(out).is_dir():
        raise OutputError(
            "is a folder.", field="out", value=str(out), fix=f"Name a file, such as {out / 'report.html'}."
        )
    is_there = place(out, "file").exists()
    if is_there and not overwrite and MARK not in out.read_text(encoding="utf-8", errors="replace")[:4000]:
        raise OutputError(
            "another file is there.", field="out", value=str(out), fix="Name a new file, or use `overwrite=True`."
        )


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
