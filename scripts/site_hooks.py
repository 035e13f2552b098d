"""The part of mkdocs.yml that is code: files of the repository outside docs/ become pages, and links to them work.

Pages are written so that their links work on GitHub. On the site a link to a file of `OUTSIDE` leads to its page, and a
link to any other file outside docs/ becomes plain text.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
# File of the repository -> its page on the site.
OUTSIDE = {
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "reference/benchmarks.md",
    "examples/upcycle.ipynb": "tutorials/notebook-upcycle.md",
    "examples/specialise.ipynb": "tutorials/notebook-specialise.md",
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|mailto:|data:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of `OUTSIDE`."""
    from mkdocs.structure.files import File

    for name, page in OUTSIDE.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=notebook(text) if name.endswith(".ipynb") else text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with its links as the site needs them."""
    return with_site_links(markdown, page.file.src_uri)


def with_site_links(markdown: str, page: str) -> str:
    """Links of a page (its path below docs/) to files outside docs/, and of outside pages to docs/."""
    written = {site: ROOT / name for name, site in OUTSIDE.items()}
    folder = written.get(page, DOCS / page).parent

    def changed(match: re.Match[str]) -> str:
        image, label, target, anchor = match.groups()
        path = Path(os.path.normpath(folder / target))
        if path.is_relative_to(DOCS):
            place = path.relative_to(DOCS).as_posix()
        else:
            place = OUTSIDE.get(path.relative_to(ROOT).as_posix(), "")
        if not place:
            return label
        return f"{image}[{label}]({os.path.relpath(place, Path(page).parent)}{anchor or ''})"

    blocks = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(block if block.startswith("```") else _LINK.sub(changed, block) for block in blocks)


def notebook(text: str) -> str:
    """A notebook as Markdown: cells in order, with the printed text and the figures of their outputs."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts += [_output(output) for output in cell.get("outputs", [])]
    return "\n\n".join(part for part in parts if part)


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        return f"![output](data:image/png;base64,{''.join(data['image/png']).strip()})"
    text = "".join(output.get("text", data.get("text/plain", [])))
    return f"```\n{text.rstrip()}\n```" if text.strip() else ""
