"""Figures as PNG files: one look, heat maps with numbers, lines distinguishable without colour.

Sequential maps only, monotone in lightness, so that darker is more on a screen and in print.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as MplFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from smolmoe.core import units
from smolmoe.core.files import replacing
from smolmoe.reports.figures import PERCENT, Figure, Heat, Level, Lines, Series, written
from smolmoe.reports.names import COLOURS, SOFTWARE, style
from smolmoe.reports.scales import room_around, spread

WIDTH = 10.8  # inches of every figure
DOTS = 150  # of a PNG, an inch
MAP = "Blues"
INK, GREY, PALE, BAND = "#1a1a1a", "#5c5c5c", "#a6a6a6", "#e3e3e3"
STYLES: tuple[dict[str, Any], ...] = tuple(map(style, range(len(COLOURS))))
_LOOK: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "grid.linewidth": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "text.color": INK,
    "text.parse_math": False,  # names of domains are plain text
}
_MOST_NUMBERS = 1000  # in the cells of one figure: more are unreadable and slow


@dataclass(frozen=True)
class Drawing:
    """A figure in matplotlib, with its title and caption."""

    name: str
    title: str
    caption: str
    figure: MplFigure


@contextmanager
def look() -> Iterator[None]:
    """The style of the figures, for drawing and saving; other figures are not affected."""
    with rc_context(_LOOK):
        yield


def new_figure(height: float) -> MplFigure:
    """An empty figure, `height` in inches."""
    figure = MplFigure(figsize=(WIDTH, height), dpi=DOTS, layout=ConstrainedLayoutEngine(h_pad=0.07, w_pad=0.05))
    FigureCanvasAgg(figure)
    return figure


def save_png(drawing: Drawing, path: Path) -> None:
    """Write the figure to a temporary file, then rename it."""
    with replacing(path) as partial:
        FigureCanvasAgg(drawing.figure).print_png(
            partial, metadata={"Software": SOFTWARE}
        )  # `savefig` would draw everything twice


def _draw_heat(axes: Axes, panel: Heat, *, numbers: bool) -> Any:
    """Cells from light to dark, NaN white with a dash; returns matplotlib's image for a colour bar."""
    values, low, high = panel.values, panel.low, panel.high
    image = axes.imshow(values, cmap=MAP, vmin=low, vmax=high, aspect="auto", interpolation="none")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.set_yticks([])
    rows, columns = values.shape
    axes.vlines(np.arange(columns - 1) + 0.5, -0.5, rows - 0.5, color="white", linewidth=0.6)
    axes.hlines(np.arange(rows - 1) + 0.5, -0.5, columns - 0.5, color="white", linewidth=0.6)
    if numbers:
        span = (high - low) or 1.0
        for (row, column), value in np.ndenumerate(values):
            strong, pale = (value - low) / span > 0.68, (row, column) in panel.pale
            colour = "white" if strong else GREY if pale and (value - low) / span < 0.4 else INK
            shown = written(value, panel.form)
            text = axes.text(
                column,
                row,
                shown,
                ha="center",
                va="center",
                fontsize=6.5,
                color=colour,
                weight="bold" if (row, column) in panel.frames else "normal",
            )
            text.set_in_layout(False)
    for row, column in panel.frames:
        for colour, width in ((INK, 2.6), ("white", 1.0)):  # seen on light and on dark
            place = (column - 0.47, row - 0.46)
            axes.add_patch(Rectangle(place, 0.94, 0.92, fill=False, edgecolor=colour, linewidth=width, zorder=3))
    return image


def colour_bar(figure: MplFigure, image: Any, axes: Any, label: str, *, in_percent: bool = False) -> None:
    """A bar of at most three inches at the upper right of these axes.

    Args:
        axes: one, or an array of all axes that share the scale.
    """
    rows = 1 if isinstance(axes, np.ndarray) else axes.get_subplotspec().get_gridspec().nrows
    room = 0.8 * figure.get_figheight() / rows
    shrink = min(1.0, 3.0 / room)
    aspect = min(room, 3.0) / 0.13
    bar = figure.colorbar(image, ax=axes, label=label, pad=0.012, aspect=aspect, shrink=shrink, anchor=(0.0, 1.0))
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(nbins=6, steps=[1, 2, 5, 10])
    if in_percent:
        bar.formatter = FuncFormatter(lambda value, position: f"{100 * value:.3g}")
    bar.update_ticks()


def label_columns(axes: Axes, labels: Sequence[str], inches: float = WIDTH) -> None:
    """Labels under columns of this total width: vertical if they are long, thinned if they are many."""
    step = math.ceil(len(labels) / 32)
    places = range(0, len(labels), step)
    upright = max(map(len, labels), default=0) * 0.075 > step * inches / len(labels)
    axes.set_xticks(list(places), [labels[place] for place in places], rotation=90 if upright else 0)


def label_rows(axes: Axes, labels: Sequence[str]) -> None:
    """Labels of the rows, thinned if they are many."""
    step = math.ceil(len(labels) / 40)
    places = range(0, len(labels), step)
    axes.set_yticks(list(places), [labels[place] for place in places])


def draw(figure: Figure, *, titled: bool = False) -> Drawing:
    """The figure as matplotlib draws it; call it inside `look()`.

    Args:
        titled: the title is part of the picture, which stands alone.
    """
    panels = list(figure.panels[figure.states - 1 :: figure.states]) if figure.slides else list(figure.panels)
    rows = math.ceil(len(panels) / figure.per_row)
    heats = [panel for panel in panels if isinstance(panel, Heat)]
    width = (WIDTH - 1.6) / figure.per_row
    cell = 0.8 * (WIDTH - 1.4) / max(figure.per_row, 2) / len(panels[0].rows) if figure.square else 0.27
    drawn = new_figure(
        rows * max([_height(panel, cell) for panel in heats] + [figure.inches] * (len(heats) < len(panels)))
        + _below(panels)
    )
    grid = drawn.subplots(rows, figure.per_row, squeeze=False, width_ratios=_widths(panels[: figure.per_row]))
    axes = list(grid.flat)
    for one in axes[len(panels) :]:
        one.set_visible(False)
    shared = len(heats) == len(panels) and len({(heat.low, heat.high) for heat in heats}) == 1
    fits = width / max((len(heat.columns) for heat in heats), default=1) >= 0.21 and cell >= 0.15
    numbers = fits and sum(heat.values.size for heat in heats) <= _MOST_NUMBERS
    by_row = any(isinstance(panel, Lines) and panel.rows for panel in panels)
    image: Any = None
    for at, (one, panel) in enumerate(zip(axes, panels, strict=False)):
        if panel.title:
            one.set_title(panel.title)
        is_lowest, is_first = at + figure.per_row >= len(panels), at % figure.per_row == 0
        if isinstance(panel, Lines):
            _draw_lines(one, panel, alone=len(panels) == 1 or by_row)
            continue
        image = _draw_heat(one, panel, numbers=numbers)
        label_columns(one, panel.columns if is_lowest else [name.split(" ")[0] for name in panel.columns], width)
        one.set_xlabel(panel.x if is_lowest else "")
        if is_first or not shared:
            label_rows(one, panel.rows)
            one.set_ylabel(panel.y)
        if not shared:
            colour_bar(drawn, image, one, panel.bar, in_percent=panel.form == PERCENT)
    if shared:
        colour_bar(drawn, image, grid, heats[0].bar, in_percent=heats[0].form == PERCENT)
    if not heats and not by_row and len(panels) > 1 and not any(_is_direct(panel) for panel in panels):
        _legend_below(drawn, axes[: len(panels)])
    if titled:
        drawn.suptitle(figure.title, x=0.01, ha="left", fontsize=10)
    return Drawing(figure.name, figure.title, figure.caption, drawn)


def _is_direct(panel: Lines | Heat) -> bool:
    return isinstance(panel, Lines) and panel.direct


def save_figure(figure: Figure, path: Path) -> None:
    """Write one figure as a PNG that stands alone."""
    with look():
        save_png(draw(figure, titled=True), path)


def _height(panel: Heat, cell: float) -> float:
    return max(len(panel.rows) * cell + 0.45, 1.2)


def _below(panels: Sequence[Lines | Heat]) -> float:
    """Space for the labels and the legend below the panels."""
    heat = next((panel for panel in panels if isinstance(panel, Heat)), None)
    if heat is None:
        return 0.35
    longest = max(map(len, heat.columns), default=0)
    return 0.45 + (0.07 * longest if longest > 4 else 0)


def _widths(panels: Sequence[Lines | Heat]) -> list[float]:
    """A panel with a name for each row needs less than the panels next to it."""
    by_row = [isinstance(panel, Lines) and bool(panel.rows) for panel in panels]
    return [1.7 if any(by_row) and not narrow else 1.0 for narrow in by_row]


def _draw_lines(axes: Axes, panel: Lines, *, alone: bool) -> None:
    for band in panel.bands:
        look: dict[str, Any] = {"color": BAND}
        if band.place is not None:
            look = {"color": style(band.place)["color"], "alpha": 0.07 if band.hatched else 0.13}
        hatch = "///" if band.hatched else None
        axes.fill_between(band.x, band.low, band.high, lw=0, hatch=hatch, label=band.name or None, zorder=1, **look)
    for series in panel.series:
        _draw_series(axes, series, by_row=bool(panel.rows))
    if panel.scale:
        _scale(axes, panel.scale)
    if panel.level is not None:
        across = axes.axvline if panel.level.upright else axes.axhline
        across(panel.level.at, color=PALE, linewidth=1, linestyle=(0, (1, 1.5)), label=panel.level.name, zorder=1)
    if panel.shaded is not None:
        axes.axvspan(*panel.shaded, color="#f1f1f1", zorder=0)
    for mark in panel.marks:
        _mark(axes, mark)
    if panel.labels:
        label_columns(axes, panel.labels)
        axes.set_xlim(-0.5, len(panel.labels) - 0.5)
    if panel.rows:
        label_rows(axes, panel.rows)
        axes.set_ylim(len(panel.rows) - 0.5, -0.5)
    else:
        low, high = axes.get_ylim()
        room = room_around(low, high, 0)
        axes.set_ylim(low - room, high + room)
        axes.set_ylim(bottom=panel.bottom, top=panel.top)
    axes.set_xlim(left=panel.left) if panel.left is not None else None
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)
    axes.grid(axis="y" if panel.labels or panel.rows else "both")
    if panel.direct:
        _names_at_the_end(axes, panel)
    elif (alone or panel.rows) and any(series.name for series in panel.series):
        beside: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
        axes.legend(**({"loc": "lower left"} if panel.scale else beside))


def _names_at_the_end(axes: Axes, panel: Lines) -> None:
    """Each line's name in its colour: at the right, or below the end of a line that ends early."""
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, position: units.count(value) if value else "0"))
    named = [series for series in panel.series if series.name and series.points]
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    late = [series for series in named if series.points[-1][0] >= left + 0.8 * (right - left)]
    heights = spread([series.points[-1][1] for series in late], 0.075 * (high - low), low, high)
    for series, y in zip(late, heights, strict=True):
        look: dict[str, Any] = {"color": _colour(series), "va": "center", "weight": "bold"}
        axes.text(1.02, y, series.name, transform=axes.get_yaxis_transform(), **look)
    for series in named:
        if series not in late:
            x, y = series.points[-1]
            axes.annotate(
                series.name,
                (x, y),
                (-6, -10),
                textcoords="offset points",
                ha="right",
                color=_colour(series),
                weight="bold",
            )


def _colour(series: Series) -> str:
    return INK if series.place is None else str(style(series.place)["color"])


def _scale(axes: Axes, scale: str) -> None:
    if scale == "log":
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, position: units.tokens(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        low, high = axes.get_xlim()
        axes.tick_params(axis="x", labelrotation=45 if high > 300 * low else 0)
        return
    axes.set_xscale("symlog", linthresh=1, linscale=0.4)
    axes.set_xlim(left=-0.15)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))


def _mark(axes: Axes, mark: Level) -> None:
    """A dashed line with its name next to it."""
    look: dict[str, Any] = {"color": GREY, "fontsize": 7.5, "ha": "left"}
    if mark.upright:
        axes.axvline(mark.at, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        axes.text(mark.at, 0.985, f" {mark.name}", transform=axes.get_xaxis_transform(), va="top", **look)
    else:
        axes.axhline(mark.at, color=GREY, linewidth=0.8, linestyle=(0, (1, 3)), zorder=0)
        axes.text(0.01, mark.at, mark.name, transform=axes.get_yaxis_transform(), va="bottom", **look)


def _draw_series(axes: Axes, series: Series, *, by_row: bool) -> None:
    if not series.points:
        return
    x, y = zip(*series.points, strict=True)
    label = series.name or None
    if series.alarm:
        axes.plot(x, y, "^", color=INK, markersize=6, clip_on=False, label=label)
    elif series.place is None:
        axes.plot(x, y, color=GREY, linewidth=0.9, linestyle=(0, (1, 1.5)), zorder=1, label=label)
    elif series.dots:
        colour = style(series.place)["color"]
        faces, edges = ("none", colour) if series.hollow else (colour, "white")
        shape = style(series.place)["marker"]
        axes.scatter(
            x, y, s=20, marker=shape, facecolors=faces, edgecolors=edges, linewidths=0.7, label=label, zorder=2
        )
    else:
        bare = {"marker": "", "linewidth": 1.4} if series.bare else {"markevery": max(1, len(x) // 12)}
        axes.plot(x, y, label=label, **{**style(series.place), **bare})
    if series.spans and series.place is not None:
        across, at = (axes.hlines, y) if by_row else (axes.vlines, x)
        across(at, *zip(*series.spans, strict=True), color=style(series.place)["color"], linewidth=1)
        for point in series.points if by_row else ():
            axes.annotate(f"{point[0]:.3f}", point, (0, 6), textcoords="offset points", fontsize=7, ha="center")


def _legend_below(figure: MplFigure, axes: Sequence[Axes]) -> None:
    """One entry for each name, under all panels."""
    entries: dict[str, Any] = {}
    for one in axes:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(entries.values(), entries, loc="outside lower center", ncols=min(4, len(entries)))
