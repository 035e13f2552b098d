"""The report on one probe: `index.html`, with its figures as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from smolmoe.core.files import growing, place, replacing, write_text
from smolmoe.errors import OutputError
from smolmoe.reports.blocks import Block, Words
from smolmoe.reports.drawing import draw, look, save_png
from smolmoe.reports.figures import Figure
from smolmoe.reports.page import MARK, Page, Section
from smolmoe.reports.page_summary import flags, headlines, layer_table, loss_table, vocabulary_tables
from smolmoe.reports.plot import plot
from smolmoe.reports.specialisation import losses, specialisation_figures
from smolmoe.reports.specialisation_data import Probed, check_comparable
from smolmoe.reports.specialisation_experts import expert_figures
from smolmoe.reports.tokens import Tokens
from smolmoe.reports.training_curves import History, training_figures

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
    figures = _figures(after, earlier, histories)
    text = _page(after, earlier, figures).html()
    with look(), growing(out), ExitStack() as together:  # if the disk is full, no figure is left
        for figure in figures:
            save_png(draw(figure), together.enter_context(replacing(out / f"{figure.name}.png")))
        write_text(page, text)
    return page


def _figures(after: Probed, before: Probed | None, histories: Sequence[History]) -> list[Figure]:
    pay = losses(after)
    found = [*specialisation_figures(after, before), *expert_figures(after, before), *training_figures(histories)]
    return [*found, *([pay] if pay else [])]


def _name(folder: Path) -> str:
    """The name of a model's folder; for a run's `model`, that of the run."""
    return folder.parent.name if folder.name == "model" and folder.parent.name else folder.name


def _page(after: Probed, before: Probed | None, figures: Sequence[Figure]) -> Page:
    model = after.result.model
    name = _name(Path(model.folder)) or model.folder
    warned = flags(after)
    intro: list[Block] = [Words(headlines(after, before), "summary")]
    if warned:
        intro.append(Words(warned[:3], "flags", more="pay", left=len(warned) - len(warned[:3])))
    sections = _sections(after, {figure.name: figure for figure in figures})
    return Page(
        kicker="smolmoe probe",
        title=f"What the experts of {name} do",
        window=f"What the experts do: {name}",
        about=f"{model.class_name}, {model.folder}",
        sections=[section for section in sections if section.blocks],
        footer=_footer(after),
        intro=intro,
    )


def _sections(after: Probed, figures: Mapping[str, Figure]) -> list[Section]:
    """All sections, in the order of the page."""

    def pick(*names: str) -> list[Block]:
        return [plot(figures[name], png=True) for name in names if name in figures]

    warned = flags(after)
    training = ("training-loss", "training-domains", "training-terms", "training-balance")
    experts = ("load", "saturation", "similarity", "similarity-layers", "coactivation")
    return [
        Section("who", "Routing by domain", pick("routing", "layers", "token-types")),
        Section("tokens", "Token by token", [Tokens(after)] if after.result.text else []),
        Section("chance", "Compared with chance", [*pick("separation"), layer_table(after)]),
        Section("right", "Routing accuracy", pick("accuracy", "accuracy-domains")),
        Section(
            "pay",
            "Effect on the loss",
            [*([Words(warned, "flags")] if warned else []), *pick("losses"), *loss_table(after)],
        ),
        Section("experts", "The experts", pick(*experts)),
        Section("words", "Tokens of each expert", vocabulary_tables(after)),
        Section("training", "Training", pick(*training)),
    ]


def _footer(after: Probed) -> str:
    plain = {key: value for key, value in after.result.data.items() if isinstance(value, str | int | float)}
    data = "; ".join(f"{key.replace('_', ' ')} {value}" for key, value in plain.items())
    return f"All numbers are in probe.json. Measured with: {data}." if data else "All numbers are in probe.json."
