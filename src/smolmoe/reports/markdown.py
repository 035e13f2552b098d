"""A report as Markdown to paste: the verdict, a link to the picture, small tables and the findings on the experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from smolmoe.core.provenance import versions
from smolmoe.hub.card import plain, prose, table
from smolmoe.reports.blocks import Table, show
from smolmoe.reports.boundary import boundary_figure, boundary_table
from smolmoe.reports.figures import Figure, Heat, Lines
from smolmoe.reports.overview import Overview, Probe
from smolmoe.reports.overview_sections import shown_probes
from smolmoe.reports.overview_summary import answers
from smolmoe.reports.probe_sentences import sentences
from smolmoe.reports.specialisation import routing

MARK = "<!-- Written by smolmoe report. -->"
_MOST_EXPERTS = 16  # columns of a table that a page of Markdown shows whole


def markdown(found: Overview, title: str, picture: str | None = None) -> str:
    """The text.

    Args:
        title: its heading.
        picture: address of the PNG of `summary_figure`, which the text then shows.
    """
    verdict, *facts = answers(found)
    parts = [MARK, f"## {plain(title)}", f"**{prose(verdict.headline)}.** {prose(verdict.sentence)}"]
    if picture:
        words = " and ".join(panel.title for panel in summary_figure(found).panels)
        parts.append(f"![{plain(words)}](<{picture}>)")
    parts += [_table(boundary_table(boundary)) for boundary in found.boundaries]
    parts.append("\n".join(f"- {fact.question}: **{prose(fact.headline)}**, {prose(fact.sentence)}" for fact in facts))
    parts += [_probe(probe) for probe in shown_probes(found)]
    parts.append(f"Measured by smolmoe {versions()['smolmoe']}; `smolmoe report` writes the page with all figures.")
    return "\n\n".join(parts) + "\n"


def _probe(probe: Probe) -> str:
    """The matrix and the three sentences."""
    said = "\n".join(f"- {sentence.question}: {prose(sentence.text)}" for sentence in sentences(probe.after))
    parts = [f"### What the experts of {plain(probe.label)} do"]
    if probe.after.experts <= _MOST_EXPERTS:
        parts.append(_matrix(probe))
    return "\n\n".join([*parts, said])


def _matrix(probe: Probe) -> str:
    """Domain x expert at the clearest layer; a share beyond chance is bold."""
    after, place = probe.after, probe.after.clearest
    shares, beyond = after.matrix[place], after.beyond[place]
    rows = [
        [plain(domain), *(f"**{100 * share:.0f}**" if bold else f"{100 * share:.0f}" for share, bold in cells)]
        for domain, cells in zip(after.domains, map(zip, shares, beyond), strict=True)
    ]
    head = [f"layer {after.layers[place]}, % of choices", *map(plain, after.labels)]
    return table(head, rows) + "\n\nBold: beyond the range of shuffled domains."


def _table(found: Table) -> str:
    def cells(row: Sequence[Any]) -> list[str]:
        return [plain(show(cell)) for cell in row]

    return table(cells(found.head), [cells(row) for row in found.rows])


def summary_figure(found: Overview) -> Figure:
    """The loss across the first conversion, and the matrix of the first probe, each if it is there."""
    panels: list[Lines | Heat] = []
    for boundary in found.boundaries[:1]:
        first = boundary_figure(boundary, "summary", found.looks)
        panels += [panel.titled("Held-out loss across the conversion") for panel in first.panels[:1]]
    for probe in shown_probes(found)[:1]:
        after = probe.after
        panel = routing(after, None).panels[after.clearest]
        panels.append(panel.titled(f"Experts of {probe.label}, layer {after.layers[after.clearest]}"))
    return Figure("summary", answers(found)[0].headline, "", panels, per_row=max(len(panels), 1), inches=3.6)
