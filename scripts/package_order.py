"""Write the picture and the list of the package order of docs/explanation/architecture.md, from pyproject.toml.

python scripts/package_order.py
"""

from __future__ import annotations

import re
import tomllib
from html import escape
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "explanation" / "architecture.md"
PICTURE = ROOT / "docs" / "images" / "packages.svg"
# First package of each group, from the top -> its title and colour.
GROUPS = {
    "cli": ("Front door", "#e8eaf6"),
    "distillation": ("Jobs", "#e3f2fd"),
    "engines": ("Models and their files", "#e8f5e9"),
    "data": ("Ground", "#fff8e1"),
}
WORDS = {
    "cli": "parse, call one function, print",
    "verbs": "one function per command, smolmoe.train(...)",
    "distillation": "a teacher's logits, cached",
    "teacher": "text from an HTTP endpoint",
    "scaling": "token budgets and the scaling law",
    "pipeline": "stages in order",
    "probing": "what each expert does",
    "reports": "pages and figures",
    "alignment": "SFT, DPO, CPO on TRL",
    "selection": "which rows to train on",
    "training": "the Trainer, objective, resume",
    "engines": "runs a model where it is served",
    "surgery": "plan, program, writer; experts; export",
    "hub": "model cards, push",
    "families": "data about architectures",
    "verification": "verify, doctor",
    "evaluation": "losses, FLOPs, speed, comparison",
    "inference": "generation, expert choice, offload",
    "data": "sources, tokens, blocks",
    "recipe": "what a user may ask for (no torch)",
    "moe": "routing, kernels, losses, generic model",
    "results": "typed results of commands",
    "core": "files, checkpoints, provenance",
    "errors": "typed errors",
}
HEIGHT, GAP = 26, 4


def order() -> list[str]:
    """The packages from the top, as import-linter checks them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    layers: list[str] = next(contract["layers"] for contract in contracts if contract["id"] == "layers")
    return [name for layer in layers for name in re.split(r"\s*[|:]\s*", layer)]


def picture(names: list[str]) -> str:
    """The order as an SVG: a box for each package, groups in colours, an arrow in the direction of imports."""
    group, groups = "", []
    for name in names:
        group = name if name in GROUPS else group
        groups.append(group)
    top, parts = 12, []
    for first, members in groupby(zip(groups, names, strict=True), key=lambda pair: pair[0]):
        title, colour = GROUPS[first]
        boxes = [name for _, name in members]
        height = len(boxes) * (HEIGHT + GAP) + GAP
        parts.append(f'<rect x="10" y="{top}" width="680" height="{height}" rx="6" fill="{colour}"/>')
        parts.append(f'<text x="26" y="{top + 22}" font-weight="bold">{escape(title)}</text>')
        for number, name in enumerate(boxes):
            y = top + GAP + number * (HEIGHT + GAP)
            box = f'<rect x="230" y="{y}" width="450" height="{HEIGHT}" rx="4" fill="#ffffff" stroke="#90a4ae"/>'
            label = f'<text x="242" y="{y + 17}" font-family="monospace" font-weight="bold">{name}</text>'
            parts.append(f'{box}{label}<text x="352" y="{y + 17}">{escape(WORDS.get(name, ""))}</text>')
        top += height + 8
    arrow = f'<line x1="704" y1="18" x2="704" y2="{top - 20}" stroke="#455a64" stroke-width="2"/>'
    arrow += f'<path d="M698 {top - 22} L710 {top - 22} L704 {top - 10} Z" fill="#455a64"/>'
    size = f'width="720" height="{top + 4}" viewBox="0 0 720 {top + 4}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13" role="img">'
    title = "<title>Packages of smolmoe in import order</title>"
    background = f'<rect width="720" height="{top + 4}" fill="#ffffff"/>'
    return "\n".join([head, title, background, *parts, arrow, "</svg>\n"])


def listed(names: list[str], page: str) -> str:
    """The page with today's list between its markers."""
    words = ", ".join(f"`{name}`" for name in names)
    return re.sub(r"(<!-- order -->\n).*?(\n<!-- /order -->)", rf"\g<1>{words}.\g<2>", page, flags=re.DOTALL)


def main() -> None:
    PICTURE.write_text(picture(order()), encoding="utf-8")
    PAGE.write_text(listed(order(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
