"""`smolmoe report`: one self-contained page on the content of folders."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from smolmoe.core.files import followed, made, place, write_text
from smolmoe.errors import OutputError, RequestError
from smolmoe.reports.figures import Figure
from smolmoe.reports.markdown import MARK as MARKDOWN_MARK
from smolmoe.reports.markdown import markdown as to_markdown
from smolmoe.reports.markdown import summary_figure
from smolmoe.reports.names import SOFTWARE
from smolmoe.reports.overview import Overview, find
from smolmoe.reports.overview_sections import sections
from smolmoe.reports.overview_summary import answers
from smolmoe.reports.page import MARK, Page

STDOUT = "-"


@dataclass(frozen=True)
class Report:
    """What a report found and wrote.

    Attributes:
        found: the content of the folders.
        files: what was written: `out`, `markdown`, `png`.
        markdown: the text, if it was asked for.
    """

    found: Overview
    files: Mapping[str, Path]
    markdown: str = ""


def report(
    runs: Annotated[
        Sequence[str | Path] | str | Path,
        Field(description="folder of a run, pipeline, model or probe, or a file such as compare.json"),
    ],
    out: Annotated[str | Path | None, Field(description="output file, a self-contained HTML page")] = None,
    *,
    markdown: Annotated[
        str | Path | None, Field(description="output file of the summary as Markdown; - is standard output")
    ] = None,
    png: Annotated[
        str | Path | None, Field(description="output file of the picture: loss across the conversion, and the matrix")
    ] = None,
    overwrite: Annotated[bool, Field(description="replacement of other files at the output paths")] = False,
) -> Report:
    """Write one offline HTML page from runs and measurements.

    The summary as Markdown and its picture are for a pull request, an issue or a model card.

    Raises:
        DataError: no such folder, or nothing from smolmoe in it.
        CheckpointError: a file has an unsupported schema.
        OutputError: another file, or a folder, is at an output path, or the system refuses.
        RequestError: no output is named, or there is nothing to draw in a picture.
    """
    folders = [Path(folder) for folder in ([runs] if isinstance(runs, str | Path) else runs)]
    text = None if markdown is None or str(markdown) == STDOUT else Path(markdown)
    files = {"out": out, "markdown": text, "png": png}
    outputs = {field: Path(file) for field, file in files.items() if file is not None}
    if not outputs and markdown is None:
        raise RequestError("no output is named.", field="out", fix="Name a page, such as report.html, or `markdown`.")
    for field, path in outputs.items():
        if followed(path) in {Path(os.path.realpath(folder)) for folder in folders}:
            raise OutputError("is an input of the report.", field=field, value=str(path), fix="Name a new file.")
        _check_free(path, field, overwrite=overwrite)
    found = find(folders)
    title = _title(found)
    page = overview_page(found).html() if out is not None else ""
    said = "" if markdown is None else to_markdown(found, title, _address(png, text))
    drawn = None if png is None else _picture(found, png)
    for field, path in outputs.items():
        _check_free(path, field, overwrite=overwrite)
        with made(followed(path).parent):
            if drawn is not None and field == "png":
                from smolmoe.reports.drawing import save_figure

                save_figure(drawn, path)
            else:
                write_text(path, page if field == "out" else said)
    return Report(found, outputs, said)


def _address(png: str | Path | None, markdown: Path | None) -> str | None:
    """Where the text finds the picture."""
    start = Path() if markdown is None else followed(markdown).parent
    return None if png is None else Path(os.path.relpath(followed(png), os.path.realpath(start))).as_posix()


def _picture(found: Overview, png: str | Path) -> Figure:
    figure = summary_figure(found)
    if not figure.panels:
        fix = "Name a pipeline with a `report` stage, or a probe."
        raise RequestError("there is no conversion and no probe to draw.", field="png", value=str(png), fix=fix)
    return figure


def _check_free(out: Path, field: str, *, overwrite: bool) -> None:
    """Check that the file may be written there."""
    if followed(out).is_dir():
        fix = f"Name a file, such as {out / 'report.html'}."
        raise OutputError("is a folder.", field=field, value=str(out), fix=fix)
    if place(out, "file").exists() and not overwrite and not _is_ours(out):
        fix = "Name a new file, or use `overwrite=True`."
        raise OutputError("another file is there.", field=field, value=str(out), fix=fix)


def _is_ours(file: Path) -> bool:
    with file.open("rb") as opened:
        head = opened.read(4000)
    return any(mark.encode() in head for mark in (MARK, MARKDOWN_MARK, f"Software\0{SOFTWARE}"))


def overview_page(found: Overview) -> Page:
    """The page."""
    title = _title(found)
    return Page(
        kicker="smolmoe report",
        title=title,
        window=f"{title}: report",
        about="" if len(found.folders) == 1 else ", ".join(folder.name or str(folder) for folder in found.folders),
        sections=sections(found),
        footer="Written by smolmoe from the output of its commands. This page loads nothing from the network.",
        answers=answers(found),
    )


def _title(found: Overview) -> str:
    main = found.main
    names = [folder.resolve().name for folder in found.folders]
    return names[0] if len(names) == 1 else main[0] if main else " and ".join(names)
