"""The token view: excerpts with tokens coloured by expert, and the experts of every layer on hover."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from markupsafe import Markup, escape

from smolmoe.reports.specialisation_data import Probed
from smolmoe.results.probe import Excerpt

# Pale enough for black text, distinguishable with any colour vision; in print by underline and number.
COLOURS = ("#77aadd", "#ee8866", "#eedd88", "#99ddff", "#ffaabb", "#bbcc33", "#dddddd", "#44bb99")
UNDERLINES = ("solid", "dotted", "double", "dashed", "wavy")
# Invisible characters, and their visible forms.
_SEEN = {" ": "·", "\n": "↵", "\r": "␍", "\t": "⇥", "\u00a0": "⍽", "\u200b": "␣", "\ufeff": "␣"}


@dataclass(frozen=True)
class Tokens:
    """A block of a page; readable without scripts, at the clearest layer."""

    shape: ClassVar[str] = "tokens"
    probed: Probed

    @property
    def start(self) -> int:
        """Place of the layer that is shown first."""
        return self.probed.clearest

    @property
    def data(self) -> dict[str, Any]:
        """The data for the page's script; gates in two digits."""
        text = [
            {
                "experts": part.experts,
                "gates": [[[round(gate, 2) for gate in gates] for gates in row] for row in part.gates],
            }
            for part in self.probed.result.text
        ]
        return {"layers": self.probed.layers, "names": self.probed.names, "text": text}

    def tokens(self, excerpt: Excerpt) -> Iterator[tuple[str, int]]:
        """Each token and its first expert at the layer that is shown first."""
        return ((text, chosen[0]) for text, chosen in zip(excerpt.tokens, excerpt.experts[self.start], strict=True))

    @staticmethod
    def html(text: str) -> Markup:
        """A token with its line breaks, also inside the token."""
        return Markup("<br>").join(visible(line) for line in text.splitlines(keepends=True))

    @staticmethod
    def after(text: str) -> Markup:
        """Where a line may break after a token."""
        return Markup("<br>" if text.endswith("\n") else "<wbr>")


def token_styles(experts: int) -> str:
    """CSS of each expert's colour and underline."""
    rules = (
        f".e{expert}{{background:{COLOURS[expert % len(COLOURS)]};"
        f"text-decoration-style:{UNDERLINES[expert % len(UNDERLINES)]}}}"
        for expert in range(experts)
    )
    return "\n".join(rules)


def script_json(data: Any) -> str:
    """JSON for a script element: nothing in it ends the element or starts a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def visible(token: str) -> Markup:
    """A token's text as HTML with visible spaces, line ends and control characters."""
    return Markup("").join(
        Markup('<i class="w">{}</i>').format(_SEEN.get(character) or hex(ord(character)))
        if character in _SEEN or not character.isprintable()
        else escape(character)
        for character in token
    )
