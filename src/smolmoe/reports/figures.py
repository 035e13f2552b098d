"""A figure as data: its panels. `plot` draws it in a page, `drawing` as a PNG."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

Points = Sequence[tuple[float, float]]
Dot = tuple[float, float, tuple[float, float], bool]  # x, row, interval of x, hollow
MOST_POINTS = 240  # of a line
PERCENT, CHANGE, RATIO = "percent", "change", "ratio"  # formats of the numbers in a heat map


@dataclass(frozen=True)
class Series:
    """Points of one thing, in a line or as dots.

    Attributes:
        name: in the legend; empty for none.
        points: (x, y).
        place: in the page's `Looks`; None for the grey of a baseline.
        spans: interval (low, high) of each point: of y, or of x in a panel with `rows`.
        bare: a line without markers.
        dots: markers without a line.
        hollow: dots that are not filled.
        alarm: black marks on the axis.
    """

    name: str
    points: Points
    place: int | None = None
    spans: Sequence[tuple[float, float]] = field(default=())
    bare: bool = False
    dots: bool = False
    hollow: bool = False
    alarm: bool = False


@dataclass(frozen=True)
class Band:
    """A shade from `low` to `high`; `place` as in `Series`; hatched for an extrapolation."""

    name: str
    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    place: int | None = None
    hatched: bool = False


@dataclass(frozen=True)
class Level:
    """A straight line across the panel."""

    name: str
    at: float
    upright: bool = False


@dataclass(frozen=True)
class Lines:
    """A panel of lines or dots.

    Attributes:
        x, y: quantities of the axes, with units.
        level: a baseline, named in the legend.
        marks: lines with their names next to them.
        labels: names of the places 0, 1, ... on the x axis, if it is not a number.
        rows: names of the places 0, 1, ... on the y axis, the first at the top.
        bottom, top: ends of the y axis.
        left: end of the x axis.
        shaded: a range of x that is marked.
        scale: of x: "log" for token counts, "ratio" for factors, "steps" for a logarithm that begins at 0; empty if
            linear.
        direct: each line has its name at its end, instead of a legend.
    """

    title: str
    x: str
    y: str
    series: Sequence[Series]
    bands: Sequence[Band] = field(default=())
    level: Level | None = None
    marks: Sequence[Level] = field(default=())
    labels: Sequence[str] = field(default=())
    rows: Sequence[str] = field(default=())
    bottom: float | None = None
    top: float | None = None
    left: float | None = None
    shaded: tuple[float, float] | None = None
    scale: str = ""
    direct: bool = False

    def titled(self, title: str) -> Lines:
        return replace(self, title=title)


@dataclass(frozen=True)
class Heat:
    """A panel of cells from light to dark.

    Attributes:
        values: [rows, columns], NaN if missing.
        rows, columns: labels.
        x, y: titles of the axes.
        bar: quantity of the scale, with its unit.
        low, high: ends of the scale.
        form: format of a number.
        frames: (row, column) of cells with a frame.
        pale: (row, column) of cells that are no finding.
    """

    title: str
    values: np.ndarray
    rows: Sequence[str]
    columns: Sequence[str]
    x: str
    y: str
    bar: str
    low: float
    high: float
    form: str = PERCENT
    frames: Collection[tuple[int, int]] = field(default=())
    pale: Collection[tuple[int, int]] = field(default=())

    def titled(self, title: str) -> Heat:
        return replace(self, title=title)


@dataclass(frozen=True)
class Figure:
    """A figure with title and caption.

    Attributes:
        name: its id in a page, and the name of its PNG.
        title, caption: what it shows, and how to read it.
        panels: in rows of `per_row`.
        slides: labels, one for each panel or each `states` panels; a page shows one slide at a time.
        states: panels per slide; a PNG shows the last of each.
        start: the slide shown first.
        inches: height of a row without heat maps in a PNG.
        square: cells are square.
    """

    name: str
    title: str
    caption: str
    panels: Sequence[Lines | Heat]
    per_row: int = 1
    slides: Sequence[str] = field(default=())
    states: int = 1
    start: int = 0
    inches: float = 2.9
    square: bool = False

    def named(self, name: str, title: str | None = None) -> Figure:
        """The same with another id, because a page may have several figures of this kind."""
        return replace(self, name=name, title=title or self.title)

    def placed(self, places: Mapping[int, int]) -> Figure:
        """The same with other places in the page's `Looks`, because a page has one colour for each model."""

        def of(part: Any) -> Any:
            return part if part.place is None else replace(part, place=places.get(part.place, part.place))

        panels = [
            replace(panel, series=[of(one) for one in panel.series], bands=[of(one) for one in panel.bands])
            if isinstance(panel, Lines)
            else panel
            for panel in self.panels
        ]
        return replace(self, panels=panels)


def row_dots(name: str, points: Sequence[Dot], place: int, at: int = 0, of: int = 1) -> list[Series]:
    """Dots with intervals in a panel with `rows`, next to those of others.

    Args:
        at, of: which of how many things have dots in each row.
    """
    shift = min(0.22, 0.7 / of) * (at - (of - 1) / 2)
    parts = [[point for point in points if point[3] == hollow] for hollow in (False, True)]
    return [
        Series(
            name, [(x, row + shift) for x, row, *_ in part], place, [p[2] for p in part], dots=True, hollow=part[0][3]
        )
        for part in parts
        if part
    ]


def thinned(points: Points) -> Points:
    """Evenly thinned points, with the last one."""
    if len(points) <= MOST_POINTS:
        return points
    step = math.ceil(len(points) / MOST_POINTS)
    return [*points[:-1:step], points[-1]]


def written(value: float, form: str) -> str:
    """The number in a cell."""
    if np.isnan(value):
        return "–"
    if form == CHANGE:
        text = f"{value:+.2f}" if abs(value) >= 0.095 else f"{value:+.3f}"
        return "0" if float(text) == 0 else text.replace("-", "−")
    return percent(value) if form == PERCENT else f"{value:.2f}".replace("0.", ".")


def percent(value: float) -> str:
    """A share as a whole percentage; `<1` for a positive share that rounds to 0."""
    rounded = round(100 * value)
    return "<1" if rounded == 0 and value > 0 else str(rounded)


def finite_range(*values: np.ndarray) -> tuple[float, float]:
    """The lowest and highest finite number; (0, 1) without any."""
    joined = np.concatenate([np.ravel(part) for part in values])
    joined = joined[np.isfinite(joined)]
    return (float(joined.min()), float(joined.max())) if joined.size else (0.0, 1.0)
