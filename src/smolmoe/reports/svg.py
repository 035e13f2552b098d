"""A panel of lines or dots as SVG in the colours of the page, which follow its theme."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from smolmoe.reports.figures import Band, Level, Lines, Series, thinned
from smolmoe.reports.names import DASHES, MARKERS, colour, dash, shape
from smolmoe.reports.scales import Scale, room_around, spread

_CHARACTER = 6.6  # mean width of a letter, in units of the picture
_BOLD = 7.8  # of a bold one
_TOP, _BOTTOM = 24, 46
_ROW, _LINE = 30, 15
_MOST_MARKERS = 24  # points of a line that are marked


@dataclass(frozen=True)
class _Frame:
    """The area of a panel: its axes and its edges."""

    x: Scale
    y: Scale
    left: float
    top: float
    right: float
    bottom: float


def svg(panel: Lines, width: int, height: int) -> Markup:
    """The panel as an SVG element.

    Args:
        width, height: of its picture; the page scales it.
    """
    if panel.rows:
        each = _ROW + 7 * min(len({one.name for one in panel.series}), 12)
        height = max(_TOP + _BOTTOM + each * len(panel.rows), 150)
    frame = _frame(panel, width, height)
    marks = [_band(band, frame) for band in panel.bands]
    marks += [_series(one, frame, by_row=bool(panel.rows), labels=panel.labels) for one in panel.series if one.points]
    levels = [*panel.marks, *([replace(panel.level, name="")] if panel.level else [])]
    parts = [
        *_axes(panel, frame),
        *(_level(level, frame, width, at) for at, level in enumerate(levels)),
        _inside_axes(marks, frame),
    ]
    parts += _names_at_the_end(panel, frame) if panel.direct else []
    form = Markup('<svg viewBox="0 0 {} {}" width="{}" height="{}" aria-hidden="true" focusable="false">{}</svg>')
    return form.format(width, height, width, height, Markup("").join(parts))


def _inside_axes(marks: Sequence[Markup], f: _Frame) -> Markup:
    """Marks without what is beyond the axes; those at an edge are whole."""
    x, y, width, height = f.left - 6, f.top - 6, f.right - f.left + 12, f.bottom - f.top + 12
    form = Markup('<svg class="inside" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" viewBox="{}">{}</svg>')
    return form.format(x, y, width, height, f"{x:.1f} {y:.1f} {width:.1f} {height:.1f}", Markup("").join(marks))


def swatch(place: int | None, *, dots: bool = False) -> Markup:
    """The line and marker of a legend's entry; None is the baseline's."""
    if place is None:
        return Markup('<svg viewBox="0 0 30 12" width="30" height="12"><path class="base" d="M1 6H29"/></svg>')
    line = Markup("") if dots else Markup('<path class="line" d="M1 6H29" {}/>').format(_dashes(place))
    form = Markup('<svg viewBox="0 0 30 12" width="30" height="12" style="--c:{}">{}{}</svg>')
    return form.format(Markup(colour(place)), line, _marker(place, 15, 6))


# -- the frame -------------------------------------------------------------------------------------------------------


def _frame(panel: Lines, width: int, height: int) -> _Frame:
    xs, ys = _ends(panel)
    longest = max((len(line) for row in panel.rows for line in row.split("\n")), default=0)
    end = max((len(one.name) for one in panel.series), default=0) if panel.direct else 0
    left = min(16 + _CHARACTER * longest, width * 0.42) if panel.rows else 58.0
    right = width - (14 + min(_BOLD * end, width * 0.36))
    bottom = height - _BOTTOM
    x = Scale(*xs, left, right, panel.scale)
    low, high = ys
    y = Scale(low, high, _TOP, bottom) if panel.rows else Scale(low, high, bottom, _TOP)
    return _Frame(x, y, left, _TOP, right, bottom)


def _ends(panel: Lines) -> tuple[tuple[float, float], tuple[float, float]]:
    """The values at the ends of both axes."""
    points = [point for one in panel.series for point in one.points if all(map(math.isfinite, point))]
    spans = [end for one in panel.series for span in one.spans for end in span]
    xs = [x for x, _ in points] + [x for band in panel.bands for x in band.x] + (spans if panel.rows else [])
    ys = [y for _, y in points] + [y for band in panel.bands for y in (*band.low, *band.high)]
    ys += [] if panel.rows else spans
    for level in (*panel.marks, *([panel.level] if panel.level else [])):
        (xs if level.upright else ys).append(level.at)
    xs += [] if panel.left is None else [panel.left]
    low, high = _padded(ys, 0.06)
    across = _padded(xs, 0.04 if panel.rows else 0.015, logarithmic=panel.scale in ("log", "ratio"))
    if panel.labels:
        across = (-0.5, len(panel.labels) - 0.5)
    if panel.left is not None:
        across = (panel.left, across[1])
    if panel.rows:
        return across, (-0.5, len(panel.rows) - 0.5)
    return across, (low if panel.bottom is None else panel.bottom, high if panel.top is None else panel.top)


def _padded(values: Sequence[float], share: float, *, logarithmic: bool = False) -> tuple[float, float]:
    """The lowest and highest value with some room."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    if logarithmic:
        room = (high / low) ** share if high > low else 2.0
        return low / room, high * room
    room = room_around(low, high, share)
    return (low if low == 0 and share < 0.02 else low - room), high + room


# -- axes ------------------------------------------------------------------------------------------------------------


def _axes(panel: Lines, f: _Frame) -> list[Markup]:
    parts = []
    if panel.shaded is not None:
        low, high = (min(max(f.x.at(value), f.left), f.right) for value in panel.shaded)
        form = Markup('<rect class="shade" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>')
        parts.append(form.format(low, f.top, high - low, f.bottom - f.top))
    for y, label in _rows(panel, f) or [(f.y.at(value), label) for value, label in f.y.ticks(5)]:
        parts.append(Markup('<path class="grid" d="M{:.1f} {:.1f}H{:.1f}"/>').format(f.left, y, f.right))
        lines = label.split("\n")
        for at, line in enumerate(lines):
            place = y + 4 + _LINE * (at - (len(lines) - 1) / 2)
            parts.append(_text(f.left - 7, place, line, "end"))
    room = max(1, int((f.right - f.left) / 62))
    ticks = _labelled(panel, f, room) or [(f.x.at(value), label) for value, label in f.x.ticks(min(room, 7))]
    for x, label in ticks:
        if not panel.labels:
            parts.append(Markup('<path class="grid" d="M{:.1f} {:.1f}V{:.1f}"/>').format(x, f.top, f.bottom))
        parts.append(_text(x, f.bottom + 17, label, "middle"))
    parts.append(Markup('<path class="axis" d="M{:.1f} {:.1f}H{:.1f}"/>').format(f.left, f.bottom, f.right))
    parts.append(_text((f.left + f.right) / 2, f.bottom + 37, panel.x, "middle", "title"))
    if panel.y and not panel.rows:
        parts.append(_text(4, 12, panel.y, "start", "title"))
    return parts


def _rows(panel: Lines, f: _Frame) -> list[tuple[float, str]]:
    return [(f.y.at(place), row) for place, row in enumerate(panel.rows)]


def _labelled(panel: Lines, f: _Frame, room: int) -> list[tuple[float, str]]:
    """Named places of the x axis, thinned if they are many."""
    step = math.ceil(len(panel.labels) / max(room, 12)) if panel.labels else 1
    return [(f.x.at(place), panel.labels[place]) for place in range(0, len(panel.labels), step)]


def _level(level: Level, f: _Frame, width: int, at: int) -> Markup:
    """A dotted line across the panel, with its name; names of several upright lines are below one another."""
    if level.upright:
        x = f.x.at(level.at)
        line = Markup('<path class="base" d="M{:.1f} {:.1f}V{:.1f}"/>').format(x, f.top, f.bottom)
        is_right = x + 8 + _CHARACTER * len(level.name) > width
        words = _text(
            x + (-5 if is_right else 5), f.top + 11 + 14 * at, level.name, "end" if is_right else "start", "mark"
        )
        return line + words if level.name else line
    y = f.y.at(level.at)
    line = Markup('<path class="base" d="M{:.1f} {:.1f}H{:.1f}"/>').format(f.left, y, f.right)
    return line + _text(f.right, y - 5, level.name, "end", "mark") if level.name else line


def _text(x: float, y: float, words: str, anchor: str, look: str = "tick") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(look, x, y, anchor, words)


# -- marks -----------------------------------------------------------------------------------------------------------


def _band(band: Band, f: _Frame) -> Markup:
    there = [*zip(band.x, band.high, strict=True), *reversed(list(zip(band.x, band.low, strict=True)))]
    look = "var(--grey)" if band.place is None else colour(band.place)
    opacity = 0.22 if band.place is None else 0.08 if band.hatched else 0.15
    form = Markup('<polygon class="band" style="--c:{}" opacity="{}" points="{}"/>')
    return form.format(Markup(look), opacity, Markup(_joined(_places(there, f))))


def _series(series: Series, f: _Frame, *, by_row: bool, labels: Sequence[str]) -> Markup:
    """The marks of a series, with what the page's script says of each point."""
    kept = thinned(series.points)
    places = _places(kept, f)
    tips = [_tip(x, y, by_row=by_row, labels=labels) for x, y in kept]
    parts: list[Markup] = []
    if series.alarm:
        parts += [_symbol("triangle-up", x, y, 5.5) for x, y in places]
    elif series.place is None:
        parts.append(Markup('<polyline class="base" points="{}"/>').format(Markup(_joined(places))))
    else:
        parts += _intervals(series, f, by_row=by_row)
        if not series.dots:
            form = Markup('<polyline class="line" points="{}" {}/>')
            parts.append(form.format(Markup(_joined(places)), _dashes(series.place)))
        if series.dots or (not series.bare and len(kept) <= _MOST_MARKERS):
            parts += [_marker(series.place, x, y, hollow=series.hollow) for x, y in places]
    form = Markup('<g class="series" style="--c:{}" data-name="{}" data-points="{}" data-tips="{}">{}</g>')
    return form.format(_look(series), series.name, Markup(_joined(places)), "|".join(tips), Markup("").join(parts))


def _tip(x: float, y: float, *, by_row: bool, labels: Sequence[str]) -> str:
    if by_row:
        return f"{x:.4g}"
    return f"{y:.4f} at {labels[round(x)] if labels else f'{x:,.6g}'}"


def _places(points: Iterable[tuple[float, float]], f: _Frame) -> list[tuple[float, float]]:
    return [(f.x.at(x), f.y.at(y)) for x, y in points]


def _joined(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _intervals(series: Series, f: _Frame, *, by_row: bool) -> list[Markup]:
    found = []
    for (x, y), (low, high) in zip(series.points, series.spans, strict=False):
        ends = [(low, y), (high, y)] if by_row else [(x, low), (x, high)]
        (x0, y0), (x1, y1) = _places(ends, f)
        found.append(Markup('<path class="line" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(x0, y0, x1, y1))
    return found


def _dashes(place: int) -> Markup:
    pattern = DASHES[dash(place)]
    return Markup('stroke-dasharray="{}"').format(pattern) if pattern else Markup("")


def _marker(place: int, x: float, y: float, *, hollow: bool = False) -> Markup:
    return _symbol(MARKERS[shape(place)], x, y, 4.2, hollow=hollow)


def _symbol(name: str, x: float, y: float, r: float, *, hollow: bool = False) -> Markup:
    paths = {
        "circle": f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0",
        "square": f"M{x - r * 0.9:.1f} {y - r * 0.9:.1f}h{1.8 * r}v{1.8 * r}h{-1.8 * r}z",
        "triangle-up": f"M{x:.1f} {y - 1.2 * r:.1f}l{1.15 * r} {2.1 * r}h{-2.3 * r}z",
        "diamond": f"M{x:.1f} {y - 1.3 * r:.1f}l{1.2 * r} {1.3 * r}l{-1.2 * r} {1.3 * r}l{-1.2 * r} {-1.3 * r}z",
        "triangle-down": f"M{x:.1f} {y + 1.2 * r:.1f}l{1.15 * r} {-2.1 * r}h{-2.3 * r}z",
        "x": f"M{x - r:.1f} {y - r:.1f}l{2 * r} {2 * r}m0 {-2 * r}l{-2 * r} {2 * r}",
    }
    return Markup('<path class="dot{}" d="{}"/>').format(
        " hollow" if hollow else " cross" if name == "x" else "", Markup(paths[name])
    )


def _names_at_the_end(panel: Lines, f: _Frame) -> list[Markup]:
    """Each line's name in its colour: at the right, or below the end of a line that ends early."""
    named = [(one, *_places([one.points[-1]], f)[0]) for one in panel.series if one.name and one.points]
    early = f.left + 0.8 * (f.right - f.left)
    late = [found for found in named if found[1] >= early]
    heights = spread([y for _, _, y in late], 15, f.top + 4, f.bottom - 4)
    found = [(one, f.right + 8, y + 4, "start") for (one, _, _), y in zip(late, heights, strict=True)]
    found += [(one, x - 8, min(y + 16, f.bottom - 6), "end") for one, x, y in named if x < early]
    form = Markup('<text class="end" style="--c:{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
    return [form.format(_look(one), x, y, anchor, one.name) for one, x, y, anchor in found]


def _look(series: Series) -> Markup:
    return Markup("var(--ink)" if series.place is None else colour(series.place))
