"""Held-out losses across a conversion, and which training is better at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smolmoe.core.progress import Progress
from smolmoe.pipeline.stage import Row, Stage, Values
from smolmoe.recipe.pipeline import ReportRecipe


def run(recipe: ReportRecipe, folder: Path, report: Progress) -> Values:
    from smolmoe.evaluation.held_out import DocumentLosses, paired_difference
    from smolmoe.reports.growth import write_report

    def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[float, float, float]:
        return paired_difference(DocumentLosses.from_json(a), DocumentLosses.from_json(b))

    report("Plotting", 0, 0)
    return write_report(
        folder,
        None if recipe.before is None else folder.parent / recipe.before,
        {label: folder.parent / name for label, name in recipe.after.items()},
        reference=recipe.reference,
        boundary=recipe.boundary,
        compare=compare,
    )


def row(result: Values, folder: Path) -> Row:
    return Row(text=f"{folder / 'growth.png'}\n{result['text']}")


def follows(values: Values) -> list[str]:
    return [name for name in (values["before"], *values["after"].values()) if name is not None]


STAGE = Stage(
    ReportRecipe,
    run,
    row,
    writes=lambda: ("report.json", "growth.png"),
    follows=follows,
    origin=lambda recipe: ", ".join(recipe.after.values()),
)
