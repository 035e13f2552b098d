"""A GGUF file as a plain checkpoint."""

from __future__ import annotations

from pathlib import Path

from smolmoe.core import units
from smolmoe.core.progress import Progress
from smolmoe.pipeline.hollow import write_skeleton
from smolmoe.pipeline.stage import Foreseen, Row, Stage, Values
from smolmoe.pipeline.stages.upcycle import writes
from smolmoe.recipe.import_model import ImportRecipe


def run(recipe: ImportRecipe, folder: Path, report: Progress) -> Values:
    from smolmoe.surgery.imports.run import import_model

    report("Importing", 0, 0)
    options = recipe.model_dump(include={"dtype", "tokenizer"})
    return import_model(recipe.source, folder, **options, overwrite=True).to_json()


def dry_run(recipe: ImportRecipe, folder: Path) -> Foreseen:
    from smolmoe.surgery.imports.gguf import skeleton

    write_skeleton(folder, skeleton(recipe.source))
    return Foreseen()


def row(result: Values, folder: Path) -> Row:
    return Row(found=f"{result['architecture']}, {units.count(result['parameters'])}, {result['dtype']}")


STAGE = Stage(ImportRecipe, run, row, dry_run, writes=writes, leaves={"": ""}, origin=lambda recipe: str(recipe.source))
