"""The fenced blocks of a page, and how its author wants each of them run.

A comment right above a block, seen in the page's source only, says what differs from running it as it stands:

    <!-- run: reduced trainer.max_steps=2 data.length=32 -->   these values are set in what it trains
    <!-- run: reduced --tokens=400 -->                         these options are given to its commands
    <!-- run: sizes -->           models of the hub have their true shapes here, and no weights
    <!-- run: parsed, WHY -->     commands and options are checked, nothing is started
    <!-- run: elsewhere TEST -->  the same, and this test runs it
    <!-- run: printed by `smolmoe ...` -->   output of a command that takes long, which is checked as above
    <!-- run: slow -->            with the slow tests
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
GENERATED = {"cli.md", "api.md"}  # help texts, written by scripts/docs.py and checked with it

_FENCE = re.compile(r"^```(\S*)\s*$")
_COMMENT = re.compile(r"^<!-- run: (.*) -->$")
_KINDS = ("reduced", "sizes", "parsed", "elsewhere", "printed", "slow")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page, line: where its fence is.
        language: what stands behind the fence.
        text: what is in it.
        run: kind of directive -> what it says, of all in the comment above.
    """

    page: Path
    line: int
    language: str
    text: str
    run: dict[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def changes(self) -> list[str]:
        return self.run.get("reduced", "").split()


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    found, index = [], 0
    while index < len(lines):
        fence = _FENCE.match(lines[index])
        if fence is None:
            index += 1
            continue
        end = lines.index("```", index + 1)
        found.append(
            Block(page, index + 1, fence[1], "\n".join(lines[index + 1 : end]) + "\n", _directives(lines, index))
        )
        index = end + 1
    return found


def _directives(lines: list[str], fence: int) -> dict[str, str]:
    above = next((line for line in reversed(lines[:fence]) if line.strip()), "")
    comment = _COMMENT.match(above)
    found = {}
    for part in comment[1].split("; ") if comment else ():
        kind = re.match(r"\w+", part)
        if kind is None or kind[0] not in _KINDS:
            raise ValueError(f"unknown directive {part!r}")
        said = part[len(kind[0]) :].strip(" ,")
        if kind[0] in ("reduced", "parsed", "elsewhere", "printed") and not said:
            raise ValueError(f"say more than {part!r}")
        found[kind[0]] = said
    return found
