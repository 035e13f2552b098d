"""Models compared on the same held-out text: quality, cost and speed."""

from __future__ import annotations

from pathlib import Path

from smolmoe.core.progress import Progress
from smolmoe.pipeline.stage import Row, Stage, Values
from smolmoe.recipe.compare import CompareRecipe


def run(recipe: CompareRecipe, folder: Path, report: Progress) -> Values:
    from smolmoe.evaluation.compare.run import compare

    options = recipe.model_dump(exclude={"models", "data", "out"})
    return compare(recipe.models, recipe.data, **options, out=folder, overwrite=True, report=report).to_json()


def row(result: Values, folder: Path) -> Row:
    return Row(text="\n".join([str(folder / "table.md"), *result["verdict"]]))


STAGE = Stage(
    CompareRecipe,
    run,
    row,
    writes=lambda: ("compare.json", "table.md"),
    origin=lambda recipe: ", ".join(recipe.models),
)
