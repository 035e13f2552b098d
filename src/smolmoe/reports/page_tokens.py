"""The token-level view of a page: each excerpt with its tokens coloured by expert, every layer's experts on hover."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from smolmoe.reports.specialisation_data import Probed

# Pale enough for black text, told apart with any colour vision; the underline and the number tell them apart in print.
COLOURS = ("#77aadd", "#ee8866", "#eedd88", "#99ddff", "#ffaabb", "#bbcc33", "#dddddd", "#44bb99")
UNDERLINES = ("solid", "dotted", "double", "dashed", "wavy")
# Characters that would not be seen, and what stands for them.
_SEEN = {"\n": "↵", "\r": "␍", "\t": "⇥", "\u00a0": "⍽", "\u200b": "␣", "\ufeff": "␣"}


def token_view(probed: Probed) -> str:
    """The section's HTML: controls, legend, excerpts, and the data that `page.js` reads; readable without it."""
    excerpts = probed.values.get("text") or []
    if not excerpts:
        return ""
    start = probed.clearest
    now = f"layer {probed.layers[start]}"
    slider = (
        f'<label for="layer">Layer</label> <input id="layer" type="range" min="0" max="{len(probed.layers) - 1}" '
        f'value="{start}" step="1" aria-describedby="layer-now"> '
        f'<output id="layer-now" for="layer">{now}</output>'
    )
    data = {
        "layers": probed.layers,
        "names": probed.names,
        "text": [{"experts": part["experts"], "gates": _short(part["gates"])} for part in excerpts],
    }
    shown = "\n".join(_excerpt(index, part, start) for index, part in enumerate(excerpts))
    return (
        f'<div id="token-view" data-layer="{probed.layers[start]}">\n'
        f'<div class="bar">{slider}<noscript>Without scripts only {now} is shown.</noscript></div>\n'
        f"{_legend(probed)}\n{shown}\n"
        '<div id="tip" role="tooltip" hidden></div>\n</div>\n'
        f'<script type="application/json" id="token-data">{script_json(data)}</script>'
    )


def token_styles(experts: int) -> str:
    """CSS of each expert's colour and underline."""
    rules = (
        f".e{expert}{{background:{COLOURS[expert % len(COLOURS)]};"
        f"text-decoration-style:{UNDERLINES[expert % len(UNDERLINES)]}}}"
        for expert in range(experts)
    )
    return "\n".join(rules)


def script_json(data: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends the element or begins a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def visible(token: str) -> str:
    """A token's text as HTML: spaces, line ends and control characters are seen."""
    parts = []
    for character in token:
        if character == " ":
            parts.append('<i class="w">·</i>')
        elif character in _SEEN or not character.isprintable():
            shown = _SEEN.get(character) or hex(ord(character))
            parts.append(f'<i class="w">{shown}</i>')
        else:
            parts.append(escape(character))
    return "".join(parts)


def _legend(probed: Probed) -> str:
    free = " free" if any(probed.names) else ""
    chips = (
        f'<li><span class="t e{index}">{index}</span>{free if name is None else f" {escape(name)}"}</li>'
        for index, name in enumerate(probed.names)
    )
    return (
        '<ul class="legend" aria-label="Experts">' + "".join(chips) + "</ul>\n"
        '<p class="hint">Colour, underline and small number are the first expert of each token at the chosen layer. '
        "Point at a token, or step through an excerpt with the arrow keys, for the experts and gates of every layer. "
        '<i class="w">·</i> is a space, <i class="w">↵</i> the end of a line.</p>'
    )


def _excerpt(index: int, part: Mapping[str, Any], layer: int) -> str:
    tokens = "".join(
        _token(place, text, part["experts"][layer][place][0], first=place == 0)
        for place, text in enumerate(part["tokens"])
    )
    domain = escape(part["domain"])
    return (
        f'<figure class="excerpt"><figcaption>{domain}</figcaption>'
        f'<p class="text" data-excerpt="{index}" role="group" aria-label="Tokens of {domain}">{tokens}</p></figure>'
    )


def _token(place: int, text: str, expert: int, *, first: bool) -> str:
    reach = 0 if first else -1  # one stop of the Tab key for each excerpt, arrow keys within
    # A line breaks where it ends, within a token too: that is how code is indented.
    lines = "<br>".join(visible(line) for line in text.splitlines(keepends=True))
    after = "<br>" if text.endswith("\n") else "<wbr>"
    return f'<span class="t e{expert}" tabindex="{reach}" data-at="{place}">{lines}<sub>{expert}</sub></span>{after}'


def _short(gates: Any) -> list[list[list[float]]]:
    """Gates in two digits, as they are shown."""
    return [[[round(gate, 2) for gate in token] for token in layer] for layer in gates]
