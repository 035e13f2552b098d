"""A page: sections of blocks in one self-contained HTML file.

Styles, scripts, figures and data are in the file, and its content security policy forbids loading anything. The
templates escape everything except `Markup`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from smolmoe.reports.blocks import Answer, Block, show
from smolmoe.reports.tokens import Tokens, script_json, token_styles

MARK = '<meta name="generator" content="smolmoe">'


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        name, title: its id and heading.
        blocks: its content; empty if it is missing.
        command: that creates it.
    """

    name: str
    title: str
    blocks: Sequence[Block]
    command: str = ""

    @property
    def html(self) -> str:
        """The HTML of its blocks; empty if it is missing."""
        return _environment().get_template("section.html").render(section=self).strip() if self.blocks else ""


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        kicker, title: above and in the heading; `window` is the browser's title.
        about: the line below the heading.
        answers: at the top, the verdict first.
        sections: including missing ones.
    """

    kicker: str
    title: str
    window: str
    about: str
    sections: Sequence[Section]
    footer: str
    answers: Sequence[Answer] = field(default=())

    def html(self) -> str:
        """The complete file."""
        blocks = [block for section in self.sections for block in _all(section.blocks)]
        experts = max((block.probed.experts for block in blocks if isinstance(block, Tokens)), default=0)
        return (
            _environment()
            .get_template("page.html")
            .render(
                page=self,
                mark=Markup(MARK),
                there=[section for section in self.sections if section.blocks],
                missing=[section for section in self.sections if not section.blocks],
                css=Markup(f"{asset('page.css')}\n{token_styles(experts)}"),
                script=Markup(asset("page.js")),
            )
        )


def _all(blocks: Sequence[Block]) -> list[Block]:
    """The blocks, including folded ones."""
    return [found for block in blocks for found in (block, *_all(getattr(block, "blocks", ())))]


def asset(name: str) -> str:
    """A style sheet or script of the pages."""
    return files("smolmoe.reports").joinpath("templates", name).read_text(encoding="utf-8").strip()


@cache
def _environment() -> Environment:
    made = Environment(loader=PackageLoader("smolmoe.reports"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"show": show, "script_json": lambda data: Markup(script_json(data)), "code": _code}
    return made


def _code(text: str) -> Markup:
    """Text with code between backticks."""
    parts = [Markup("<code>{}</code>").format(part) if at % 2 else part for at, part in enumerate(text.split("`"))]
    return Markup("").join(parts)
