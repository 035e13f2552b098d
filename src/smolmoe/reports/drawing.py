"""What the figures of a page share: one look, heat maps with numbers, lines told apart without colour, SVG and PNG.

Sequential maps only, monotone in lightness, so that darker is more on a screen and in print.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from smolmoe.core.files import replacing
from smolmoe.reports.names import COLOURS, style

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
    "text.parse_math": False,  # names of domains are text, dollars included
    "svg.fonttype": "none",
    "svg.hashsalt": "smolmoe",
}
_MOST_NUMBERS = 1000  # in the cells of one figure: more are neither read nor quick to draw


@dataclass(frozen=True)
class Drawing:
    """A figure with its words.

    Attributes:
        name: its id in the page and the name of its PNG.
        title: what it shows.
        caption: a sentence on how to read it.
    """

    name: str
    title: str
    caption: str
    figure: Figure


@contextmanager
def look() -> Iterator[None]:
    """Drawing and saving happen in here, so that no figure outside is touched."""
    with rc_context(_LOOK):
        yield


def new_figure(height: float) -> Figure:
    """An empty figure, `height` in inches."""
    figure = Figure(figsize=(WIDTH, height), dpi=DOTS, layout=ConstrainedLayoutEngine(h_pad=0.07, w_pad=0.05))
    FigureCanvasAgg(figure)
    return figure


def svg(drawing: Drawing) -> str:
    """The figure as an `<svg>` element with an accessible title; its ids begin with its name: a page holds many."""
    buffer = io.StringIO()
    _settle(drawing.figure)
    nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
    FigureCanvasSVG(drawing.figure).print_svg(buffer, metadata=nothing)
    text = buffer.getvalue()
    text = re.sub(r"<!--.*?-->\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r"(?:url\(#|xlink:href=\"#)([^)\"]+)", text))
    text = re.sub(r' id="([^"]+)"', lambda found: f' id="{drawing.name}-{found[1]}"' if found[1] in used else "", text)
    text = re.sub(r"(url\(#|xlink:href=\"#)", rf"\g<1>{drawing.name}-", text)
    start = text.index(">")
    # The page scales the figure to its width, so that its own size is taken out.
    head = re.sub(r' (width|height)="[^"]*"', "", text[:start])
    title = f'<title id="{drawing.name}-title">{escape(drawing.title)}</title>'
    return f'{head} role="img" aria-labelledby="{drawing.name}-title">{title}{text[start + 1 :]}'


def save_png(drawing: Drawing, path: Path) -> None:
    """Write the figure beside its place, then rename."""
    _settle(drawing.figure)
    with replacing(path) as partial:
        FigureCanvasAgg(drawing.figure).print_png(partial)  # not `savefig`, which draws everything twice


def _settle(figure: Figure) -> None:
    """Lay the figure out once: it is drawn twice."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")


def heat_map(
    axes: Axes,
    values: np.ndarray,
    *,
    low: float,
    high: float,
    write: Callable[[float], str] | None = None,
    size: float = 7,
) -> Any:
    """Cells [rows, columns] from light to dark, NaN white with a dash; returns matplotlib's image for a colour bar.

    Args:
        write: the number in a cell; None for none.
        size: points of the numbers.
    """
    image = axes.imshow(values, cmap=MAP, vmin=low, vmax=high, aspect="auto", interpolation="none")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.set_yticks([])
    rows, columns = values.shape
    axes.vlines(np.arange(columns - 1) + 0.5, -0.5, rows - 0.5, color="white", linewidth=0.6)
    axes.hlines(np.arange(rows - 1) + 0.5, -0.5, columns - 0.5, color="white", linewidth=0.6)
    if write is not None:
        span = (high - low) or 1.0
        for (row, column), value in np.ndenumerate(values):
            dark = (value - low) / span > 0.68
            shown = "–" if math.isnan(value) else write(value)
            text = axes.text(
                column, row, shown, ha="center", va="center", fontsize=size, color="white" if dark else INK
            )
            text.set_in_layout(False)
    return image


def frame_cells(axes: Axes, cells: Sequence[tuple[int, int]]) -> None:
    """A frame, seen on light and on dark, around each (row, column)."""
    for row, column in cells:
        for colour, width in ((INK, 2.6), ("white", 1.0)):
            place = (column - 0.47, row - 0.46)
            axes.add_patch(Rectangle(place, 0.94, 0.92, fill=False, edgecolor=colour, linewidth=width, zorder=3))


def percent(value: float) -> str:
    """A share as a whole percentage; what rounds to 0 but is something is `<1`."""
    rounded = round(100 * value)
    return "<1" if rounded == 0 and value > 0 else str(rounded)


def colour_bar(figure: Figure, image: Any, axes: Any, label: str, *, in_percent: bool = False) -> None:
    """A bar of at most three inches at the upper right of these axes.

    Args:
        axes: one, or an array of all that share the scale.
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
    """Labels under columns that share this width: upright where they are too long, fewer where they are too many."""
    step = math.ceil(len(labels) / 32)
    places = range(0, len(labels), step)
    upright = max(map(len, labels), default=0) * 0.075 > step * inches / len(labels)
    axes.set_xticks(list(places), [labels[place] for place in places], rotation=90 if upright else 0)


def panels_in_a_row(count: int, most: int) -> int:
    """As many rows as `most` panels in each would need, filled evenly."""
    return math.ceil(count / math.ceil(count / most))


def label_rows(axes: Axes, labels: Sequence[str]) -> None:
    """Labels beside the rows, fewer where they are too many to read."""
    step = math.ceil(len(labels) / 40)
    places = range(0, len(labels), step)
    axes.set_yticks(list(places), [labels[place] for place in places])


@dataclass(frozen=True)
class Panels:
    """Heat maps of one kind side by side, all on one scale.

    Attributes:
        values: [panels, rows, columns].
        titles: of the panels.
        rows, columns: labels; a column label may have a name after its number, shown under the lowest panels.
        row_axis, column_axis, bar: what they are, with units.
        low, high: of the scale.
        write: the number in a cell.
        in_percent: whether the bar counts shares in percent.
        per_row: panels side by side, as `panels_in_a_row` counts them.
        cell: height of a cell in inches.
    """

    values: np.ndarray
    titles: Sequence[str]
    rows: Sequence[str]
    columns: Sequence[str]
    row_axis: str
    column_axis: str
    bar: str
    low: float
    high: float
    write: Callable[[float], str]
    per_row: int
    cell: float = 0.24
    in_percent: bool = True

    def draw(self) -> Figure:
        """All panels in one figure; numbers in the cells where they fit."""
        count, rows, columns = self.values.shape
        lines = math.ceil(count / self.per_row)
        named = any(" " in label for label in self.columns)
        height = lines * (rows * self.cell + 0.45) + (1.0 if named else 0.45)
        width = (WIDTH - 1.6) / self.per_row
        figure = new_figure(height)
        grid = figure.subplots(lines, self.per_row, squeeze=False)
        fits = width / columns >= 0.21 and self.cell >= 0.15
        write = self.write if fits and self.values.size <= _MOST_NUMBERS else None
        image: Any = None
        for index, axes in enumerate(grid.flat):
            if index >= count:
                axes.set_visible(False)
                continue
            image = heat_map(axes, self.values[index], low=self.low, high=self.high, write=write, size=6.5)
            axes.set_title(self.titles[index])
            self._label(axes, index, width, lowest=index + self.per_row >= count)
        colour_bar(figure, image, grid, self.bar, in_percent=self.in_percent)
        return figure

    def _label(self, axes: Axes, index: int, width: float, *, lowest: bool) -> None:
        if lowest:
            label_columns(axes, self.columns, width)
            axes.set_xlabel(self.column_axis)
        else:
            label_columns(axes, [label.split(" ")[0] for label in self.columns], width)
        if index % self.per_row == 0:
            label_rows(axes, self.rows)
            axes.set_ylabel(self.row_axis)


def finite_range(*values: np.ndarray) -> tuple[float, float]:
    """The lowest and highest number of all, (0, 1) where there is none."""
    joined = np.concatenate([np.ravel(part) for part in values])
    joined = joined[np.isfinite(joined)]
    return (float(joined.min()), float(joined.max())) if joined.size else (0.0, 1.0)
