"""The blocks of a page: words, tables, figures, cards, code. Their HTML is in `templates/blocks.html`.

A chart's colours are names (`@1` ... `@10`, `@ink`, `@grey`, `@line`), which the page's script resolves for light and
dark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, ClassVar, Protocol

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
    more: str = ""  # id of the section with the others
    left: int = 0  # number of the others


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
class Chart:
    """A figure for plotly, with caption and numbers.

    Attributes:
        name: its id in the page.
        title, caption: what it shows, and how to read it.
        traces, layout: of plotly; the page adds the shared settings.
        head, rows: the numbers.
        layers: labels of a slider; each trace's `z` is then a list with a matrix for each.
        start: the label shown first.
        height: in pixels.
        png: file of the same figure in the page's folder.
    """

    shape: ClassVar[str] = "chart"
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
    png: str = ""

    @property
    def data(self) -> dict[str, Any]:
        """The data for the page's script."""
        traces = [_safe(trace) for trace in self.traces]
        return {"data": traces, "layout": dict(self.layout), "layers": list(self.layers), "start": self.start}

    @property
    def table(self) -> Table:
        """The numbers."""
        return Table(self.head, self.rows)


def plotted(text: str) -> str:
    """Text without HTML or TeX for plotly."""
    return escape(text).replace("$", "&#36;")


def _safe(trace: Mapping[str, Any]) -> dict[str, Any]:
    """plotly interprets HTML in labels; names are plain text."""
    words: dict[str, Any] = {
        key: plotted(trace[key]) for key in ("name", "legendgroup") if isinstance(trace.get(key), str)
    }
    for key in ("x", "y", "text"):
        if key in trace:
            words[key] = [plotted(value) if isinstance(value, str) else value for value in trace[key]]
    return {**trace, **words}


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
