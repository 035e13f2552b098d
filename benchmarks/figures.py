"""The figures of docs/reference/results.md that are drawn from its tables, in the colours of the reports.

    python benchmarks/figures.py

The tables are printed by the commands above them; this reads them from the page, so a figure shows what its table says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from smolmoe.reports.drawing import look
from smolmoe.reports.names import style

DOCS = Path(__file__).resolve().parents[1] / "docs"
STEP_TOKENS = 1024  # of `smolmoe run embedded` and `smolmoe run untying`
NUMBER = r"[-+]?\d+(?:\.\d+)?"


def main() -> None:
    page = (DOCS / "reference" / "results.md").read_text(encoding="utf-8")
    drawings: dict[str, Callable[[str, Any], None]] = {
        "boundary": lambda page, axes: curves(page, axes, "smolmoe run embedded", "since the conversion"),
        "untying": lambda page, axes: curves(page, axes, "smolmoe run untying", "since the conversion"),
        "continued": continued,
        "specialise-accuracy": accuracy,
    }
    from matplotlib.figure import Figure

    for name, draw in drawings.items():
        with look():
            figure = Figure(figsize=(8, 3.8), layout="constrained")
            draw(page, figure.subplots())
            figure.savefig(DOCS / "images" / f"{name}.png", dpi=120)


def curves(page: str, axes: Any, command: str, since: str) -> None:
    """Held-out loss at the steps of a pipeline's tables, one line per arm."""
    block = page.split(f"<!-- run: printed by `{command}` -->", 1)[1].split("```")[1]
    tokens = {name: float(cells[-2].replace(",", "")) for name, cells in rows(block, "changes")}
    points: dict[str, dict[float, float]] = {}
    for heading in re.findall(r"^held-out loss.*$", block, re.MULTILINE):
        columns = heading.split("  ", 1)[1].split()
        steps = [int(column) for column in columns if column.isdigit()]
        for name, cells in rows(block, heading):
            losses = [float(cell) for cell in cells][-len(steps) - 1 :]
            places = [*map(float, steps), tokens[name] / STEP_TOKENS]
            points.setdefault(name, {}).update(zip(places, losses, strict=True))
    for place, (name, found) in enumerate(points.items()):
        axes.plot(*zip(*sorted(found.items()), strict=True), label=name, **style(place))
    axes.set_xscale("symlog", linthresh=1)
    axes.set(xlabel=f"optimiser steps {since}", ylabel="held-out loss (nats per token)")
    axes.set_xticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    axes.legend(loc="lower left")


def rows(block: str, heading: str) -> list[tuple[str, list[str]]]:
    """The rows of the first table with this heading: name, cells."""
    lines = block[block.index(heading) :].splitlines()[2:]
    table = lines[: lines.index("")] if "" in lines else lines
    return [(name, cells) for name, *cells in (re.split(r"\s{2,}", line.strip()) for line in table)]


def continued(page: str, axes: Any) -> None:
    """Difference of each arm's final loss from the dense model's, with intervals over seeds."""
    table = page.split("<!-- continued:begin -->", 1)[1].split("\n\n")[0]
    found = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in table.strip().splitlines()[2:]]
    arms = [row for row in found if row[0] not in ("dense", "dense-equal-flops")]
    shown = [row for row in arms if max(map(abs, spans(row))) < 0.05]
    for place, (column, label) in enumerate(((5, "same tokens"), (6, "same FLOPs"))):
        for at, row in enumerate(shown):
            value, low, high = map(float, re.findall(NUMBER, row[column])[:3])
            look_of = {**style(place), "linestyle": "none"}
            ends = [[value - low], [high - value]]
            name = f"minus dense, {label}" if at == 0 else None
            axes.errorbar([at + 0.16 * place - 0.08], [value], yerr=ends, capsize=4, label=name, **look_of)
    axes.axhline(0, color="grey", linestyle=":", linewidth=1)
    axes.set_xticks(range(len(shown)), [row[0] for row in shown])
    axes.set_xlim(-0.5, len(shown) - 0.5)
    left_out = [f"{row[0]} is off the scale: {', '.join(f'{span:+.3f}' for span in spans(row))}" for row in arms]
    axes.set(ylabel="held-out loss (nats per token)")
    axes.set_xlabel("; ".join(words for words, row in zip(left_out, arms, strict=True) if row not in shown))
    axes.legend()


def accuracy(page: str, axes: Any) -> None:
    """Routing accuracy of named experts by domain: mean over seeds, lowest to highest."""
    table = page.split("<!-- specialise:begin -->", 1)[1].split("\n\n")[1].strip().splitlines()
    domains = [cell.strip() for cell in table[0].strip("|").split("|")][2:]
    for place, line in enumerate(table[2:]):
        name, _, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        found = [tuple(map(float, re.findall(NUMBER, cell))) for cell in cells]
        reach = [[mean - low for mean, low, _ in found], [high - mean for mean, _, high in found]]
        places = [at + 0.12 * (place - 1.5) for at in range(len(domains))]
        means = [mean for mean, _, _ in found]
        axes.errorbar(places, means, yerr=reach, capsize=3, label=name, **{**style(place), "linestyle": "none"})
    axes.set_xticks(range(len(domains)), domains)
    axes.set(ylabel="classified correctly (%)", ylim=(None, 101))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)


def spans(row: Sequence[str]) -> list[float]:
    """The differences from the dense model, same tokens and same FLOPs."""
    return [float(re.findall(NUMBER, row[column])[0]) for column in (5, 6)]


if __name__ == "__main__":
    main()
