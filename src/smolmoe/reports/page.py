"""One page on the experts of a model: figures, tables and tokens, from what `probe` and the training runs wrote.

The page needs nothing beside itself: styles, script, figures and data are in the file, and its content security policy
forbids it to load anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from html import escape
from importlib.resources import files
from pathlib import Path

from smolmoe.core.files import growing, place, replacing, write_text
from smolmoe.errors import OutputError
from smolmoe.reports.drawing import Drawing, look, save_png, svg
from smolmoe.reports.page_summary import flags, headlines, layer_table, loss_table, vocabulary_tables
from smolmoe.reports.page_tokens import token_styles, token_view
from smolmoe.reports.specialisation import losses, specialisation_figures
from smolmoe.reports.specialisation_data import Probed, check_comparable
from smolmoe.reports.specialisation_experts import expert_figures
from smolmoe.reports.training_curves import History, training_figures

FILE = "index.html"
MARK = '<meta name="generator" content="smolmoe">'
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def write_page(out: Path, probe: Path, *, before: Path | None = None, runs: Mapping[str, Path] | None = None) -> Path:
    """Write `index.html` and its figures as PNG into `out`, replacing an earlier page of ours; returns the page's path.

    Args:
        probe: a `probe.json`, or the folder that has it.
        before: the same of the model before it was specialised.
        runs: label -> folder of a training run, whose `metrics.jsonl` becomes curves.

    Raises:
        DataError: a file is missing or something else.
        RequestError: the probes cannot be laid side by side.
        OutputError: another page is there.
    """
    place(out, "growing folder")
    page = out / FILE
    if page.exists() and MARK not in page.read_text(encoding="utf-8", errors="replace"):
        raise OutputError("another page is there.", field="out", value=str(page), fix="Name a new folder.")
    after = Probed.read(probe)
    earlier = None if before is None else Probed.read(before)
    if earlier is not None:
        check_comparable(earlier, after)
    histories = [History.read(label, folder) for label, folder in (runs or {}).items()]
    with (
        look(),
        growing(out),
        ExitStack() as together,
    ):  # of a page whose figures do not fit on the disk nothing is left
        sections = _sections(after, earlier, histories)
        for section in sections:
            for drawing in section.drawings:
                save_png(drawing, together.enter_context(replacing(out / f"{drawing.name}.png")))
        write_text(page, _page(after, earlier, sections))
    return page


class _Section:
    """A heading with what stands under it: words and tables as HTML, then figures, then more HTML."""

    def __init__(self, name: str, title: str, drawings: Sequence[Drawing] = (), *, first: str = "", last: str = ""):
        self.name, self.title, self.drawings, self.first, self.last = name, title, drawings, first, last

    def html(self) -> str:
        shown = "\n".join(_figure(drawing) for drawing in self.drawings)
        return f'<section id="{self.name}"><h2>{escape(self.title)}</h2>\n{self.first}\n{shown}\n{self.last}</section>'


def _sections(after: Probed, before: Probed | None, histories: Sequence[History]) -> list[_Section]:
    """All that there is something to show of, in the order of the page."""
    by_name = {drawing.name: drawing for drawing in specialisation_figures(after, before)}
    pay = losses(after)

    def pick(*names: str) -> list[Drawing]:
        return [by_name[name] for name in names if name in by_name]

    sections = [
        _Section("who", "Who takes what", pick("routing", "layers", "token-types")),
        _Section("tokens", "Token by token", first=token_view(after)),
        _Section("chance", "More than chance?", pick("separation"), last=layer_table(after)),
        _Section("right", "How often right", pick("accuracy", "accuracy-domains")),
        _Section("pay", "Does it pay?", [pay] if pay else [], first=_flag_list(after), last=loss_table(after)),
        _Section("experts", "The experts", expert_figures(after, before)),
        _Section("words", "Words of each expert", first=vocabulary_tables(after)),
        _Section("training", "Training", training_figures(histories)),
    ]
    return [section for section in sections if section.drawings or section.first or section.last]


def _figure(drawing: Drawing) -> str:
    return (
        f'<figure id="{drawing.name}"><h3>{escape(drawing.title)}</h3>\n{svg(drawing)}\n'
        f'<figcaption>{escape(drawing.caption)} <a class="png" href="{drawing.name}.png">PNG</a></figcaption></figure>'
    )


def _flag_list(after: Probed, most: int | None = None) -> str:
    """The flags, or the first of them and a link to the others."""
    found = flags(after)
    shown = [f"<li>{escape(flag)}</li>" for flag in found[:most]]
    if len(shown) < len(found):
        shown.append(f'<li><a href="#pay">and {len(found) - len(shown)} more</a></li>')
    return f'<ul class="flags">{"".join(shown)}</ul>' if found else ""


def _page(after: Probed, before: Probed | None, sections: Sequence[_Section]) -> str:
    model = after.values["model"]
    name = Path(model["folder"]).name or model["folder"]
    said = "".join(f"<li>{escape(sentence)}</li>" for sentence in headlines(after, before))
    contents = "".join(f'<li><a href="#{part.name}">{escape(part.title)}</a></li>' for part in sections)
    body = "\n".join(part.html() for part in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
{MARK}
<title>What the experts do: {escape(name)}</title>
<style>
{asset("page.css")}
{token_styles(after.experts)}
</style>
</head>
<body>
<header>
<h1>What the experts of {escape(name)} do</h1>
<p class="model">{escape(str(model.get("class_name", "")))}, {escape(str(model["folder"]))}</p>
<ul class="summary">{said}</ul>
{_flag_list(after, most=3)}
<nav aria-label="Contents"><ul>{contents}</ul></nav>
</header>
<main>
{body}
</main>
<footer>{escape(_footer(after))}</footer>
<script>
{asset("page.js")}
</script>
</body>
</html>
"""


def _footer(after: Probed) -> str:
    plain = {key: value for key, value in after.values.get("data", {}).items() if isinstance(value, str | int | float)}
    data = "; ".join(f"{key.replace('_', ' ')} {value}" for key, value in plain.items())
    return f"All numbers are in probe.json. Measured with: {data}." if data else "All numbers are in probe.json."


def asset(name: str) -> str:
    """A style sheet or script of the pages."""
    return files("smolmoe.reports").joinpath(name).read_text(encoding="utf-8").strip()
