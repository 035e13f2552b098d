"""Names and looks of everything on a page: the only place that defines colours, dashes and markers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# `page.css` has the same for the light theme, and lighter ones for the dark theme.
COLOURS = (
    *("#1f5fa8", "#b45309", "#17776a", "#7b3294", "#6b6b6b"),
    *("#a8325e", "#736400", "#1f78a4", "#4a7a1e", "#8a4b2a"),
)
DASHES = ("", "7 4", "9 4 2 4", "2 4", "12 4", "12 3 2 3 2 3")  # of SVG
MARKERS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "x")
_LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
_SHAPES = ("o", "s", "^", "D", "v", "x")

# In every figure of a probe, the model, its earlier state and the baselines have the same looks.
ROUTER, BEFORE, LINEAR_PROBE, DENSE_PROBE, DOCUMENTS, OTHER = range(6)
PROBE_NAMES = {
    ROUTER: "router",
    BEFORE: "router, before",
    LINEAR_PROBE: "linear probe on the router's input",
    DENSE_PROBE: "linear probe on the dense model",
    DOCUMENTS: "router, majority over a document",
}
CHANCE = "chance"
SOFTWARE = "smolmoe"  # in a PNG, which is known as ours by it


class Looks:
    """Name -> its place in the lists above, the same in the whole page."""

    def __init__(self, names: Iterable[str] = ()):
        self._places: dict[str, int] = {}
        for name in names:
            self(name)

    @property
    def names(self) -> list[str]:
        """All names in order of their places."""
        return list(self._places)

    def __call__(self, name: str) -> int:
        return self._places.setdefault(name, len(self._places))


def dash(place: int) -> int:
    """Index of the dash; with the marker it distinguishes 36 names without colour."""
    return place % len(DASHES)


def shape(place: int) -> int:
    """Index of the marker; a repeated dash has another marker."""
    return (place + place // len(DASHES)) % len(MARKERS)


def colour(place: int) -> str:
    """A colour of the page's style sheet, which has one for the light and one for the dark theme."""
    return f"var(--c{place % len(COLOURS) + 1})"


def style(place: int) -> dict[str, Any]:
    """matplotlib's line style, with the same colour, dash and marker as in the page."""
    form = _SHAPES[shape(place)]
    line = {"color": COLOURS[place % len(COLOURS)], "linestyle": _LINES[dash(place)]}
    return {**line, "marker": form, "markersize": 4.5 if form == "D" else 5.5}
