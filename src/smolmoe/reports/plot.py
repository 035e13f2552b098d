"""A figure for a page: plotly's traces and layout, and its numbers as a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from smolmoe.reports.blocks import Chart, plotted
from smolmoe.reports.figures import PERCENT, Figure, Heat, Lines, Points, Series, written
from smolmoe.reports.names import DASHES, colour, dash, marker

MOST_POINTS = 240
_MOST_NUMBERS = 16  # most columns of a heat map with numbers in its cells
_HEAT = [[0, "@heat0"], [0.5, "@heat1"], [1, "@heat2"]]


def plot(figure: Figure, *, png: bool = False) -> Chart:
    """The figure with its caption and numbers.

    Args:
        png: the page's folder has a PNG of its name.
    """
    panels = list(figure.panels)
    if figure.slides:
        panels = panels[figure.start * figure.states :][: figure.states]
    columns = len(panels) if figure.slides else min(figure.per_row, len(panels))
    rows = math.ceil(len(panels) / columns)
    layout = grid([(panel.title if len(panels) > 1 else "", panel.x, panel.y) for panel in panels], columns)
    scales = [(panel.low, panel.high) if isinstance(panel, Heat) else None for panel in panels]
    traces: list[dict[str, Any]] = []
    shown: set[str] = set()
    for at, panel in enumerate(panels):
        number = "" if at == 0 else str(at + 1)
        x, y = layout[f"xaxis{number}"], layout[f"yaxis{number}"]
        if isinstance(panel, Heat):
            slides = [other.values for other in figure.panels[at :: figure.states] if isinstance(other, Heat)]
            values = slides if figure.slides else [panel.values]
            trace = _heat(panel, values, at, scale=scales[at] not in scales[at + 1 :])
            trace["colorbar"] |= {"x": x["domain"][1] + 0.005, "xanchor": "left"}
            if trace["showscale"] and (at + 1) % columns and at + 1 < len(panels):  # its scale's title does not fit
                trace["colorbar"]["title"] = {"text": ""}
                layout["annotations"][at]["text"] = f"<b>{plotted(panel.title)}</b>, {plotted(panel.bar)}"
            traces.append(trace)
            _cells(panel, x, y, layout, number)
            left = panels[at - 1] if at % columns else None
            if isinstance(left, Heat) and list(left.rows) == list(panel.rows):
                y |= {"showticklabels": False, "title": {"text": ""}}  # the labels are on the left of the row
        else:
            traces += _lines(panel, at, shown)
            _scales(panel, x, y, layout, number)
    head, table = _numbers(figure)
    return Chart(
        figure.name,
        figure.title,
        figure.caption,
        traces,
        layout,
        head,
        table,
        layers=figure.slides,
        start=figure.start,
        height=max(map(_height, panels)) * rows + 60,
        png=f"{figure.name}.png" if png else "",
    )


def _height(panel: Lines | Heat) -> int:
    if isinstance(panel, Heat):
        return 160 + 32 * len(panel.rows)
    return max(340, 140 + 24 * len(panel.rows))


# -- heat maps -------------------------------------------------------------------------------------------------------


def _heat(panel: Heat, values: Sequence[np.ndarray], at: int, *, scale: bool) -> dict[str, Any]:
    """The trace; `z` and the text of the cells are lists, one for each slide."""
    factor = 100 if panel.form == PERCENT else 1
    fits = len(panel.columns) <= _MOST_NUMBERS
    z = [_plain(factor * part) for part in values]
    text = [[[written(value, panel.form) for value in row] for row in part] for part in values] if fits else []
    one = len(values) == 1
    return {
        "type": "heatmap",
        "x": list(panel.columns),
        "y": list(panel.rows),
        "z": z[0] if one else z,
        "zmin": factor * panel.low,
        "zmax": factor * panel.high,
        "colorscale": _HEAT,
        "showscale": scale,
        "colorbar": {"title": {"text": panel.bar, "side": "right"}, "thickness": 11, "outlinewidth": 0},
        "xgap": 2,
        "ygap": 2,
        **({"text": text[0] if one else text, "texttemplate": "%{text}"} if fits else {}),
        "hovertemplate": f"%{{y}}, {panel.x} %{{x}}: %{{z:.3~g}}<extra></extra>",
        **on(at),
    }


def _plain(values: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(value) else round(float(value), 4) for value in row] for row in values]


def _cells(panel: Heat, x: dict[str, Any], y: dict[str, Any], layout: dict[str, Any], number: str) -> None:
    x |= {"type": "category", "showgrid": False}
    y |= {"type": "category", "showgrid": False, "autorange": "reversed", "automargin": True}
    layout.setdefault("shapes", []).extend(
        {"type": "rect", "x0": column - 0.46, "x1": column + 0.46, "y0": row - 0.44, "y1": row + 0.44}
        | {"xref": f"x{number}", "yref": f"y{number}", "line": {"color": "@ink", "width": 2.5}}
        for row, column in panel.frames
    )


# -- lines -----------------------------------------------------------------------------------------------------------


def _lines(panel: Lines, at: int, shown: set[str]) -> list[dict[str, Any]]:
    traces: list[dict[str, Any]] = []
    for band in panel.bands:
        fill = "@grey/0.25" if band.place is None else f"{colour(band.place)}/{0.08 if band.hatched else 0.15}"
        traces.append(
            {"type": "scatter", "mode": "lines", "fill": "toself", "line": {"width": 0}, "fillcolor": fill}
            | {"x": [*band.x, *reversed(band.x)], "y": [*band.high, *reversed(band.low)], "hoverinfo": "skip"}
            | _legend(band.name, shown)
            | on(at)
        )
    by_row = bool(panel.rows)
    return traces + [_series(series, by_row) | _legend(series.name, shown) | on(at) for series in panel.series]


def _legend(name: str, shown: set[str]) -> dict[str, Any]:
    """One entry for each name in all panels."""
    is_first = bool(name) and name not in shown
    shown.add(name)
    return {"name": name, "legendgroup": name, "showlegend": is_first}


def _series(series: Series, by_row: bool) -> dict[str, Any]:
    if series.alarm:
        look: dict[str, Any] = {"color": "@ink", "size": 9, "symbol": "triangle-up"}
        return line(series.name, series.points, 0, mode="markers", marker=look, cliponaxis=False)
    if series.place is None:
        return line(series.name, series.points, 0, mode="lines", line={"color": "@grey", "dash": "dot", "width": 1.5})
    made = line(series.name, series.points, series.place)
    if series.dots:
        made |= {"mode": "markers", "marker": marker(series.place, 7)}
        made["marker"]["symbol"] += "-open" if series.hollow else ""
    elif series.bare:
        made["mode"] = "lines"
    if series.spans:
        values = [point[0 if by_row else 1] for point in series.points]
        intervals = [(value, *span) for value, span in zip(values, series.spans, strict=True)]
        made["error_x" if by_row else "error_y"] = bars(intervals, colour(series.place))
    if by_row:
        made["hovertemplate"] = "%{x:.4g}<extra>%{fullData.name}</extra>"
    return made


def _scales(panel: Lines, x: dict[str, Any], y: dict[str, Any], layout: dict[str, Any], number: str) -> None:
    if panel.labels:
        step = math.ceil(len(panel.labels) / 24)
        places = list(range(0, len(panel.labels), step))
        x |= {"tickvals": places, "ticktext": [plotted(panel.labels[place]) for place in places]}
        x |= {"range": [-0.5, len(panel.labels) - 0.5]}
    if panel.rows:
        y |= {
            "tickvals": list(range(len(panel.rows))),
            "ticktext": [plotted(row) for row in panel.rows],
            "autorange": "reversed",
            "automargin": True,
        }
    if panel.left is not None:
        x |= {"rangemode": "tozero"}
    if panel.scale:
        x |= {"type": "log", "dtick": "D2" if panel.scale == "log" else 1}
    x["exponentformat"] = "SI"
    if panel.bottom is not None and panel.top is not None:
        y["range"] = [panel.bottom, panel.top]
    elif panel.bottom == 0:
        y["rangemode"] = "tozero"
    shapes = layout.setdefault("shapes", [])
    if panel.shaded is not None:
        low, high = panel.shaded
        shapes.append(
            {"type": "rect", "x0": low, "x1": high, "y0": 0, "y1": 1, "xref": f"x{number}", "yref": f"y{number} domain"}
            | {"fillcolor": "@grey/0.1", "line": {"width": 0}, "layer": "below"}
        )
    for level in (*([] if panel.level is None else [panel.level]), *panel.marks):
        mark(layout, level.at, level.name, number, upright=level.upright, log=bool(panel.scale))


def mark(
    layout: dict[str, Any], at: float, words: str, number: str = "", *, upright: bool = True, log: bool = False
) -> None:
    """A dotted line across a panel, with a label; on a logarithmic axis plotly places words by the exponent."""
    x, y = f"x{number}", f"y{number}"
    place, across, along = ("x", "y", f"{y} domain") if upright else ("y", "x", f"{x} domain")
    shape = {"type": "line", f"{place}0": at, f"{place}1": at, f"{across}0": 0, f"{across}1": 1}
    refs = {f"{place}ref": x if upright else y, f"{across}ref": along}
    layout.setdefault("shapes", []).append(shape | refs | {"line": {"color": "@grey", "width": 1.5, "dash": "dot"}})
    note = {place: math.log10(at) if log and upright else at, across: 1, "text": plotted(words), **refs}
    note |= {"showarrow": False, "font": {"color": "@grey", "size": 11.5}}
    aside = {"xanchor": "left", "xshift": 5, "yanchor": "top"} if upright else {"xanchor": "right", "yanchor": "bottom"}
    layout["annotations"] = [*layout.get("annotations", ()), note | aside]


# -- parts of charts -------------------------------------------------------------------------------


def line(name: str, points: Points, place: int, **more: Any) -> dict[str, Any]:
    """A line with the colour, dash and marker of its place in the page's `Looks`."""
    kept = thinned(points)
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(kept) <= 24 else "lines",
        "name": name,
        "x": [x for x, _ in kept],
        "y": [round(y, 6) for _, y in kept],
        "line": {"color": colour(place), "dash": DASHES[dash(place)], "width": 2},
        "marker": marker(place, 7),
        "hovertemplate": "%{y:.4f}<extra>%{fullData.name}</extra>",
        **more,
    }


def thinned(points: Points) -> Points:
    """Evenly thinned points, with the last one."""
    if len(points) <= MOST_POINTS:
        return points
    step = math.ceil(len(points) / MOST_POINTS)
    return [*points[:-1:step], points[-1]]


def bars(ends: Sequence[tuple[float, float, float]], look: str) -> dict[str, Any]:
    """plotly's bars of intervals (value, low, high) in a colour."""
    high, low = [end - value for value, _, end in ends], [value - end for value, end, _ in ends]
    return {"type": "data", "symmetric": False, "array": high, "arrayminus": low, "color": look} | {
        "thickness": 1.4,
        "width": 5,
    }


def grid(panels: Sequence[tuple[str, str, str]], columns: int) -> dict[str, Any]:
    """A layout of panels (title, x axis, y axis) in rows of `columns`."""
    rows = math.ceil(len(panels) / columns)
    across, down = 0.11, 0.52 / rows
    width, height = (1 - across * (columns - 1)) / columns, (1 - down * (rows - 1)) / rows
    layout: dict[str, Any] = {"annotations": []}
    for place, (title, x, y) in enumerate(panels):
        number = "" if place == 0 else str(place + 1)
        left, top = place % columns * (width + across), 1 - place // columns * (height + down)
        layout[f"xaxis{number}"] = {"domain": [left, left + width], "anchor": f"y{number}", "title": {"text": x}}
        layout[f"yaxis{number}"] = {"anchor": f"x{number}", "title": {"text": y}}
        if rows > 1:
            layout[f"yaxis{number}"]["domain"] = [max(0.0, top - height), top]
        words = f"<b>{plotted(title)}</b>" if title else ""
        layout["annotations"].append(
            {"text": words, "x": left, "y": top, "yshift": 18, "xref": "paper", "yref": "paper"}
            | {"xanchor": "left", "yanchor": "bottom", "showarrow": False}
        )
    return layout


def on(panel: int) -> dict[str, str]:
    """The axes of a panel, counted from 0."""
    number = "" if panel == 0 else str(panel + 1)
    return {"xaxis": f"x{number}", "yaxis": f"y{number}"}


# -- numbers ---------------------------------------------------------------------------------------------------------


def _numbers(figure: Figure) -> tuple[list[str], list[list[Any]]]:
    """The numbers of all panels: of lines by x, of cells by row."""
    heats = [panel for panel in figure.panels if isinstance(panel, Heat)]
    if heats:
        rows = [
            [f"{panel.title}, {label}" if panel.title else label, *(written(value, panel.form) for value in values)]
            for panel in heats
            for label, values in zip(panel.rows, panel.values, strict=True)
        ]
        return [f"{heats[0].y} ({heats[0].bar})", *(f"{heats[0].x} {label}" for label in heats[0].columns)], rows
    panels = [panel for panel in figure.panels if isinstance(panel, Lines)]
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
