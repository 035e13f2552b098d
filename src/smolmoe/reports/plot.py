"""A figure for a page: its panels as SVG and tables, and its numbers as a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from smolmoe.reports.blocks import Cell, Chart, Grid, Plot
from smolmoe.reports.figures import Figure, Heat, Lines, Points, written
from smolmoe.reports.svg import svg, swatch

# Width and height: alone, on a phone, next to one or two others.
_WIDE, _NARROW, _PARTS = (860, 330), (380, 290), {2: (400, 285), 3: (320, 260)}


def plot(figure: Figure, *, png: bool = False) -> Chart:
    """The figure with its caption and numbers.

    Args:
        png: the page's folder has a PNG of its name.
    """
    panels = list(figure.panels)
    if figure.slides:
        panels = panels[figure.start * figure.states :][: figure.states]
    columns = figure.states if figure.slides else min(figure.per_row, len(panels))
    head, rows = _numbers(figure)
    return Chart(
        figure.name,
        figure.title,
        figure.caption,
        [_panel(panel, figure, at, columns) for at, panel in enumerate(panels)],
        head,
        rows,
        legend=_legend(panels),
        per_row=columns,
        layers=figure.slides,
        start=figure.start,
        png=f"{figure.name}.png" if png else "",
    )


def _panel(panel: Lines | Heat, figure: Figure, at: int, columns: int) -> Plot | Grid:
    title = panel.title if len(figure.panels) > 1 and not (figure.slides and figure.states == 1) else ""
    if isinstance(panel, Lines):
        if columns > 1:
            return Plot(title, svg(panel, *_PARTS[min(columns, 3)]))
        return Plot(title, svg(panel, *_WIDE), svg(panel, *_NARROW))
    slides = [_cells(one) for one in figure.panels[at :: figure.states] if isinstance(one, Heat)]
    caption = f"{title}: {panel.bar}" if title else panel.bar
    corner = f"{panel.y}\u00a0↓ {panel.x}\u00a0→"
    return Grid(caption, corner, panel.columns, panel.rows, _cells(panel), slides if figure.slides else ())


def _cells(panel: Heat) -> list[list[Cell]]:
    span = (panel.high - panel.low) or 1.0

    def cell(row: int, column: int, value: float) -> Cell:
        look = "found" if (row, column) in panel.frames else "chance" if (row, column) in panel.pale else ""
        shade = None if np.isnan(value) else round(100 * min(max((value - panel.low) / span, 0), 1))
        return Cell(shade, written(value, panel.form), look)

    return [
        [cell(row, column, value) for column, value in enumerate(values)] for row, values in enumerate(panel.values)
    ]


def _legend(panels: Sequence[Lines | Heat]) -> list[tuple[Markup, str]]:
    """An entry for each name in all panels."""
    found: dict[str, Markup] = {}
    for panel in panels:
        if not isinstance(panel, Lines) or panel.direct:
            continue
        for series in panel.series:
            if series.name and series.points and series.name not in found:
                alarm = Markup('<span class="alarm">▲</span>')
                found[series.name] = alarm if series.alarm else swatch(series.place, dots=series.dots)
        for band in panel.bands:
            if band.name:
                found.setdefault(band.name, Markup('<span class="shade"></span>'))
        if panel.level is not None and panel.level.name:
            found.setdefault(panel.level.name, swatch(None))
    return [(picture, name) for name, picture in found.items()]


# -- numbers ---------------------------------------------------------------------------------------------------------


def _numbers(figure: Figure) -> tuple[list[str], list[list[Any]]]:
    """The numbers of all lines by x; a heat map is a table itself."""
    panels = [panel for panel in figure.panels if isinstance(panel, Lines)]
    if not panels:
        return [], []
    several = len(panels) > 1
    lines = {
        f"{one.name}, {panel.title}" if several else one.name: one.points
        for panel in panels
        for one in panel.series
        if one.name and not one.alarm
    }
    labels = panels[0].labels
    return by_step(panels[0].x, lines, lambda x: labels[int(x)] if labels else f"{x:,.10g}")


def by_step(head: str, lines: Mapping[str, Points], form: Callable[[float], Any] = lambda x: x) -> tuple[Any, Any]:
    """Head and rows of a table of lines over one x axis, thinned to at most 40 rows."""
    at = sorted({x for points in lines.values() for x, _ in points})
    kept = at if len(at) <= 40 else at[:: math.ceil(len(at) / 40)]
    values = {name: dict(points) for name, points in lines.items()}
    return [head, *lines], [[form(x), *(values[name].get(x) for name in lines)] for x in kept]
