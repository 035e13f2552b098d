"""Rows to train on, selected by a score."""

from __future__ import annotations

from pathlib import Path

from smolmoe.core.progress import Progress
from smolmoe.pipeline.stage import Row, Stage, Values
from smolmoe.recipe import SelectRecipe


def run(recipe: SelectRecipe, folder: Path, report: Progress) -> Values:
    from smolmoe.selection.run import run_select

    return run_select(recipe, folder, overwrite=True, report=report).to_json()


def row(result: Values, folder: Path) -> Row:
    return Row(found=f"{result['rows']:,} rows")


def origin(recipe: SelectRecipe) -> str:
    return ", ".join(str(source.preset or source.path) for source in recipe.sources)


def writes() -> tuple[str, ...]:
    from smolmoe.selection.results import WRITTEN

    return WRITTEN


STAGE = Stage(
    SelectRecipe,
    run,
    row,
    writes=writes,
    leaves={"": "rows.jsonl", "held_out": "held-out.jsonl"},
    origin=origin,
)
