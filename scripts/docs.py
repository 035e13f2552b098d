"""Write the generated parts of the documentation, or with --check say which of them are out of date.

The families tables go between markers in README.md and docs/families.md; docs/cli.md is the help of every command.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import typer.core
import typer.main

from smolmoe.cli import app
from smolmoe.families.table import sources_table, targets_table

ROOT = Path(__file__).resolve().parents[1]


def between(text: str, name: str, content: str) -> str:
    """`text` with what stands between the markers of `name` replaced."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"no markers for {name}")
    return pattern.sub(lambda match: match[1] + content + "\n" + match[2], text)


def cli_page() -> str:
    """The help of every command, as a reader of the terminal sees it."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    parts = ["# Command line\n\nGenerated from the program by `make docs`.\n"]
    for name, command in group.commands.items():
        context = typer.Context(command, info_name=f"smolmoe {name}", max_content_width=110, terminal_width=110)
        parts.append(f"## smolmoe {name}\n\n```\n{command.get_help(context).rstrip()}\n```\n")
    return "\n".join(parts)


def pages() -> dict[Path, str]:
    """Path -> what the file should hold."""
    readme, families = ROOT / "README.md", ROOT / "docs" / "families.md"
    return {
        readme: between(readme.read_text(encoding="utf-8"), "sources", sources_table()),
        families: between(
            between(families.read_text(encoding="utf-8"), "sources", sources_table()), "targets", targets_table()
        ),
        ROOT / "docs" / "cli.md": cli_page(),
    }


def main() -> None:
    stale = [p for p, text in pages().items() if not p.is_file() or p.read_text(encoding="utf-8") != text]
    for path in stale:
        name = path.relative_to(ROOT)
        if "--check" in sys.argv:
            print(f"{name} is out of date: run `make docs`", file=sys.stderr)
        else:
            path.write_text(pages()[path], encoding="utf-8")
            print(f"written: {name}")
    if stale and "--check" in sys.argv:
        sys.exit(1)


if __name__ == "__main__":
    main()
