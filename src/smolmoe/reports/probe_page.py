"""The report on one probe: `index.html`, with its figures as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from smolmoe.core.files import growing, place, replacing, write_text
from smolmoe.errors import OutputError
from smolmoe.reports.drawing import draw, look, save_png
from smolmoe.reports.page import MARK, Page, Section
from smolmoe.reports.probe_part import probe_figures, probe_sections
from smolmoe.reports.specialisation_data import Probed, check_comparable
from smolmoe.reports.training_curves import History

FILE = "index.html"


def write_page(out: Path, probe: Path, *, before: Path | None = None, runs: Mapping[str, Path] | None = None) -> Path:
    """Write `index.html` and its figures as PNG into `out`, replacing an earlier page; returns the page's path.

    Args:
        probe: a `probe.json`, or its folder.
        before: the same for the model before its specialisation.
        runs: label -> folder of a training run, whose `metrics.jsonl` becomes curves.

    Raises:
        DataError: a file is missing or something else.
        RequestError: the probes cannot be compared.
        OutputError: another page is there.
    """
    place(out, "growing folder")
    page = out / FILE
    if page.exists() and MARK not in page.read_text(encoding="utf-8", errors="replace"):
        raise OutputError("another page is there.", field="out", value=str(page), fix="Name a new folder.")
    after = Probed.read(probe)
    earlier = None if before is None else Probed.read(before)
    if earlier is not None:
        check_comparable(earlier, after)
    histories = [History.read(label, folder) for label, folder in (runs or {}).items()]
    figures = probe_figures(after, earlier, histories)
    text = _page(after, probe_sections(after, figures, png=True)).html()
    with look(), growing(out), ExitStack() as together:  # if the disk is full, no figure is left
        for figure in figures:
            save_png(draw(figure), together.enter_context(replacing(out / f"{figure.name}.png")))
        write_text(page, text)
    return page


def _name(folder: Path) -> str:
    """The name of a model's folder; for a run's `model`, that of the run."""
    return folder.parent.name if folder.name == "model" and folder.parent.name else folder.name


def _page(after: Probed, parts: Sequence[Section]) -> Page:
    model = after.result.model
    name = _name(Path(model.folder)) or model.folder
    return Page(
        kicker="smolmoe probe",
        title=f"What the experts of {name} do",
        window=f"What the experts do: {name}",
        about=f"{model.experts} experts, top-{model.top_k}, {model.class_name}, {model.folder}",
        sections=parts,
        footer=_footer(after),
    )


def _footer(after: Probed) -> str:
    plain = {key: value for key, value in after.result.data.items() if isinstance(value, str | int | float)}
    data = "; ".join(f"{key.replace('_', ' ')} {value}" for key, value in plain.items())
    return f"All numbers are in probe.json. Measured with: {data}." if data else "All numbers are in probe.json."
