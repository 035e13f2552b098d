"""The blocks of a page: words, tables, figures, cards, code. Their HTML is in `templates/blocks.html`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from markupsafe import Markup

_OPEN_ROWS = 400


class Block(Protocol):
    """A part of a section; `shape` is the name of its macro."""

    shape: ClassVar[str]


@dataclass(frozen=True)
class Answer:
    """One of the large answers at the top.

    Attributes:
        question: that it answers.
        headline: a few words, in large type.
        sentence: the details.
        tone: "good", "bad", "open" (no difference seen, not measured) or "".
    """

    question: str
    headline: str
    sentence: str
    tone: str = ""


@dataclass(frozen=True)
class Words:
    """A list of sentences; `look` is "summary", "flags" or ""."""

    shape: ClassVar[str] = "words"
    sentences: Sequence[str]
    look: str = ""


@dataclass(frozen=True)
class Findings:
    """Questions with a sentence each."""

    shape: ClassVar[str] = "findings"
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Texts:
    """Continuations of one prompt, side by side: (model, text in the colour of its place)."""

    shape: ClassVar[str] = "texts"
    prompt: str
    texts: Sequence[tuple[str, str, str]]  # name, colour, text


@dataclass(frozen=True)
class Note:
    """A sentence; `look` is "note" or "hint"."""

    shape: ClassVar[str] = "note"
    text: str
    look: str = "note"


@dataclass(frozen=True)
class Table:
    """A table whose rows begin with their headings; `look` is its CSS class, `units` a second line of the head."""

    shape: ClassVar[str] = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    look: str = ""
    units: Sequence[str] = field(default=())

    @property
    def shown(self) -> Sequence[Sequence[Any]]:
        """The rows that a page shows."""
        return self.rows[:_OPEN_ROWS]


@dataclass(frozen=True)
class Plot:
    """A panel of lines or dots, as SVG for a wide screen and for a narrow one; `narrow` is empty if one serves both."""

    kind: ClassVar[str] = "plot"
    title: str
    wide: Markup
    narrow: Markup | str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a heat map.

    Attributes:
        shade: in percent of the scale; None without a number.
        text: the number.
        look: "found" with a frame, "chance" if it is not a finding, or "".
    """

    shade: int | None
    text: str
    look: str = ""


@dataclass(frozen=True)
class Grid:
    """A heat map: a table with shaded cells; `slides` has the cells of each layer of the figure's slider."""

    kind: ClassVar[str] = "grid"
    title: str
    corner: str
    columns: Sequence[str]
    rows: Sequence[str]
    cells: Sequence[Sequence[Cell]]
    slides: Sequence[Sequence[Sequence[Cell]]] = field(default=())

    @property
    def data(self) -> list[Any]:
        """The slides for the page's script: shade, text and look of each cell."""
        return [[[cell.shade, cell.text, cell.look] for row in cells for cell in row] for cells in self.slides]


@dataclass(frozen=True)
class Chart:
    """A figure with caption and numbers.

    Attributes:
        name: its id in the page.
        title, caption: what it shows, and how to read it.
        panels: in rows of `per_row`, below one another on a narrow screen.
        legend: (picture, name) of each entry.
        head, rows: the numbers; empty if the panels are tables themselves.
        layers: labels of a slider.
        start: the label shown first.
        png: file of the same figure in the page's folder.
    """

    shape: ClassVar[str] = "chart"
    name: str
    title: str
    caption: str
    panels: Sequence[Plot | Grid]
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    legend: Sequence[tuple[Markup, str]] = field(default=())
    per_row: int = 1
    layers: Sequence[str] = field(default=())
    start: int = 0
    png: str = ""

    @property
    def table(self) -> Table:
        """The numbers."""
        return Table(self.head, self.rows)


@dataclass(frozen=True)
class Fold:
    """Blocks under a label that opens them."""

    shape: ClassVar[str] = "fold"
    label: str
    blocks: Sequence[Block]
    kind: str = ""
    opened: bool = False


@dataclass(frozen=True)
class Card:
    """The claim of a model.

    Attributes:
        label, kind, reason: of the model and its claim.
        tone, verdict: of its verification.
        size: a sentence on the model.
        checks: (passed, meaning, measured, limit) of each.
    """

    label: str
    kind: str
    reason: str
    tone: str
    verdict: str
    size: str
    checks: Sequence[tuple[bool, str, float, float]]


@dataclass(frozen=True)
class Cards:
    """Cards side by side."""

    shape: ClassVar[str] = "cards"
    cards: Sequence[Card]


@dataclass(frozen=True)
class Pairs:
    """Terms and values; terms without a value are left out."""

    shape: ClassVar[str] = "pairs"
    rows: Sequence[tuple[str, Any]]


@dataclass(frozen=True)
class Code:
    """Text to copy, with a sentence before it."""

    shape: ClassVar[str] = "code"
    text: str
    before: str = ""


def show(value: Any) -> str:
    """A number with its significant digits; None as a dash; text unchanged."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10**11 else f"{value:.3g}"
    if isinstance(value, float):
        return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.3g}"
    return value if isinstance(value, str) else str(value)
