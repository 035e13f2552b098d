"""A figure of the report: what plotly draws of it, its words, and its numbers as a table for whoever sees no figure.

Colours are names (`@1` ... `@6`, `@ink`, `@grey`, `@line`) that the page's script fills in for light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from smolmoe.reports.names import DASHES, colour, dash, marker
from smolmoe.reports.page_tokens import script_json

MOST_POINTS = 240
_OPEN_ROWS = 400

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """A figure with its words and numbers.

    Attributes:
        name: its id in the page.
        title, caption: what it shows, and how to read it.
        traces, layout: plotly's; the page adds what all figures share.
        head, rows: the numbers.
        layers: labels of a slider; the traces' `z` are then lists with one matrix for each.
        start: the label shown first.
        height: in pixels.
    """

    name: str
    title: str
    caption: str
    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    layers: Sequence[str] = field(default=())
    start: int = 0
    height: int = 360

    def html(self) -> str:
        """The `<figure>`, with the data that `report.js` draws it from."""
        slider = self._slider() if len(self.layers) > 1 else ""
        data = {
            "data": [_safe(trace) for trace in self.traces],
            "layout": dict(self.layout),
            "layers": list(self.layers),
            "start": self.start,
        }
        words = escape(f"{self.title}. {self.caption}", quote=True)
        return (
            f'<figure class="chart" id="{self.name}"><h3>{escape(self.title)}</h3>{slider}'
            f'<div class="plot" role="img" aria-label="{words}" style="height:{self.height}px"></div>'
            f"<figcaption>{escape(self.caption)}</figcaption>{self._numbers()}"
            f'<script type="application/json" class="chart-data">{script_json(data)}</script></figure>'
        )

    def _slider(self) -> str:
        label = f"{self.name}-layer"
        return (
            f'<p class="slide"><label for="{label}">Layer</label> <input id="{label}" type="range" min="0" '
            f'max="{len(self.layers) - 1}" value="{self.start}" step="1"> '
            f'<output for="{label}">{escape(self.layers[self.start])}</output></p>'
        )

    def _numbers(self) -> str:
        return f'<details class="data"><summary>The numbers</summary>{table(self.head, self.rows)}</details>'


def _safe(trace: Mapping[str, Any]) -> dict[str, Any]:
    """plotly reads some HTML in labels: names are text."""
    words: dict[str, Any] = {
        key: escape(trace[key]) for key in ("name", "legendgroup") if isinstance(trace.get(key), str)
    }
    for key in ("x", "y", "text"):
        if key in trace:
            words[key] = [escape(value) if isinstance(value, str) else value for value in trace[key]]
    return {**trace, **words}


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], *, caption: str = "", kind: str = "") -> str:
    """An HTML table; the first cell of a row is its heading; everything is escaped."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    kept = rows[:_OPEN_ROWS]
    body = "".join(
        f'<tr><th scope="row">{escape(show(row[0]))}</th>'
        + "".join(f"<td>{escape(show(cell))}</td>" for cell in row[1:])
        + "</tr>"
        for row in kept
    )
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    more = f"<p>And {len(rows) - len(kept)} more rows.</p>" if len(rows) > len(kept) else ""
    cls = f' class="{kind}"' if kind else ""
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption or "Table", quote=True)}">'
        f"<table{cls}>{said}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>{more}"
    )


def show(value: Any) -> str:
    """A number in as many digits as mean something; None as a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10**11 else f"{value:.3g}"
    if isinstance(value, float):
        return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.3g}"
    return str(value)


def line(name: str, points: Points, place: int, **more: Any) -> dict[str, Any]:
    """A line told apart by colour, dash and marker: those of what it is about, by its place in the page's `Looks`."""
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
    """Evenly fewer points, the last one kept."""
    if len(points) <= MOST_POINTS:
        return points
    step = math.ceil(len(points) / MOST_POINTS)
    return [*points[:-1:step], points[-1]]


def axes(x: str, y: str, **more: Any) -> dict[str, Any]:
    """A layout with titles of both axes; `more` are layout keys, or `xaxis_type` and the like."""
    layout: dict[str, Any] = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    for key, value in more.items():
        axis, _, part = key.partition("_")
        if axis in ("xaxis", "yaxis") and part:
            layout[axis][part] = value
        else:
            layout[key] = value
    return layout


def beside(*panels: tuple[str, str, str], log_x: bool = False) -> dict[str, Any]:
    """A layout of panels side by side: (title, x axis, y axis) of each."""
    gap, count = 0.11, len(panels)
    width = (1 - gap * (count - 1)) / count
    layout: dict[str, Any] = {"annotations": []}
    for place, (title, x, y) in enumerate(panels):
        number = "" if place == 0 else str(place + 1)
        left = place * (width + gap)
        layout[f"xaxis{number}"] = {"domain": [left, left + width], "anchor": f"y{number}", "title": {"text": x}}
        if log_x:
            layout[f"xaxis{number}"]["type"] = "log"
        layout[f"yaxis{number}"] = {"anchor": f"x{number}", "title": {"text": y}}
        layout["annotations"].append(
            {"text": f"<b>{title}</b>", "x": left, "y": 1.0, "yshift": 18, "xref": "paper", "yref": "paper"}
            | {"xanchor": "left", "yanchor": "bottom", "showarrow": False}
        )
    return layout


def on(panel: int) -> dict[str, str]:
    """The axes of a panel, counted from 0."""
    number = "" if panel == 0 else str(panel + 1)
    return {"xaxis": f"x{number}", "yaxis": f"y{number}"}


def by_step(head: str, lines: Mapping[str, Points], form: Callable[[float], Any] = lambda x: x) -> tuple[Any, Any]:
    """Head and rows of a table of lines over one x axis, at the places that are few enough to read."""
    at = sorted({x for points in lines.values() for x, _ in points})
    kept = at if len(at) <= 40 else at[:: math.ceil(len(at) / 40)]
    values = {name: dict(points) for name, points in lines.items()}
    return [head, *lines], [[form(x), *(values[name].get(x) for name in lines)] for x in kept]
