"""The report as one page that needs nothing beside it: styles, scripts, figures and data are in the file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from smolmoe.core.files import followed, made, place, write_text
from smolmoe.errors import OutputError
from smolmoe.reports.overview import Overview
from smolmoe.reports.overview_sections import Section, sections, shown_probe
from smolmoe.reports.overview_summary import Answer, answers
from smolmoe.reports.page import MARK, POLICY, asset
from smolmoe.reports.page_tokens import token_styles

_ICON = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg'/%3E"


def write_overview(found: Overview, out: Path, *, overwrite: bool = False) -> Path:
    """Write the page, replacing an earlier one of ours; returns its path.

    Args:
        overwrite: replace another file, too.

    Raises:
        OutputError: another file, or a folder, is there, or the system refuses.
    """
    check_page(out, overwrite=overwrite)
    text = overview_page(found)
    with made(followed(out).parent):
        write_text(out, text)
    return out


def check_page(out: Path, *, overwrite: bool) -> None:
    """See that the page may be written there, before anything is read for it.

    Raises:
        OutputError: as `write_overview`.
    """
    if followed(out).is_dir():
        raise OutputError(
            "is a folder.", field="out", value=str(out), fix=f"Name a file, such as {out / 'report.html'}."
        )
    is_there = place(out, "file").exists()
    if is_there and not overwrite and MARK not in out.read_text(encoding="utf-8", errors="replace")[:4000]:
        raise OutputError(
            "another file is there.", field="out", value=str(out), fix="Name a new file, or use `overwrite=True`."
        )


def overview_page(found: Overview) -> str:
    """The page's HTML."""
    parts = sections(found)
    there, missing = [part for part in parts if part.html], [part for part in parts if not part.html]
    title = _title(found)
    probe = shown_probe(found)
    links = "".join(f'<li><a href="#{part.name}">{escape(part.title)}</a></li>' for part in there)
    links += '<li><a href="#missing">What is missing</a></li>' if missing else ""
    body = "\n".join(_section(part) for part in there) + _missing(missing)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
{MARK}
<link rel="icon" href="{_ICON}">
<title>{escape(title)}: report</title>
<style>
{asset("page.css")}
{asset("report.css")}
{token_styles(probe.after.experts) if probe else ""}
</style>
</head>
<body class="report">
<a class="skip" href="#main">Skip to the content</a>
<header>
<div class="top"><p class="kicker">smolmoe report</p>
<button type="button" id="theme" aria-pressed="false">Dark theme</button></div>
<h1>{escape(title)}</h1>
<p class="model">{escape(", ".join(folder.name or str(folder) for folder in found.folders))}</p>
{_answers(answers(found))}
{_note(missing)}
</header>
<div class="columns">
<nav aria-label="Contents"><ul>{links}</ul></nav>
<main id="main" tabindex="-1">
<noscript><p class="note">The figures need JavaScript; their numbers are in the tables under them.</p></noscript>
{body}
</main>
</div>
<footer>Made by smolmoe from what its commands wrote. Nothing on this page is fetched from anywhere.</footer>
<script>
{_plotly()}
</script>
<script>
{asset("page.js")}
{asset("report.js")}
</script>
</body>
</html>
"""


def _title(found: Overview) -> str:
    main = found.main
    names = [folder.resolve().name for folder in found.folders]
    return names[0] if len(names) == 1 else main[0] if main else " and ".join(names)


def _answers(given: Sequence[Answer]) -> str:
    shown = "".join(
        f'<div class="answer {answer.tone}"><dt>{escape(answer.question)}</dt>'
        f"<dd><strong>{escape(answer.headline)}</strong> <span>{_code(answer.sentence)}</span></dd></div>"
        for answer in given
    )
    return f'<dl class="answers">{shown}</dl>'


def _code(text: str) -> str:
    """Escaped text, with what stands between backticks as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts))


def _note(missing: Sequence[Section]) -> str:
    if not missing:
        return ""
    names = ", ".join(part.title.lower() for part in missing)
    return f'<p class="hint">Not in these folders: {escape(names)}. <a href="#missing">What would make them</a></p>'


def _section(part: Section) -> str:
    return f'<section id="{part.name}"><h2>{escape(part.title)}</h2>\n{part.html}</section>'


def _missing(missing: Sequence[Section]) -> str:
    if not missing:
        return ""
    rows = "".join(
        f"<tr><th scope='row'>{escape(part.title)}</th><td><code>{escape(part.command)}</code></td></tr>"
        for part in missing
    )
    return (
        '<section id="missing"><h2>What is missing</h2><p>These parts have nothing to show. The commands beside them '
        "make what they show; name their folders to <code>smolmoe report</code>, too.</p>"
        f'<div class="wide"><table class="commands"><thead><tr><th scope="col">part</th>'
        f"<th scope='col'>command</th></tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
