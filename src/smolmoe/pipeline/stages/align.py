"""An alignment: SFT, DPO or CPO."""

from __future__ import annotations

from pathlib import Path

from smolmoe.core.progress import Progress
from smolmoe.pipeline.stage import Foreseen, Row, Stage, Values
from smolmoe.pipeline.stages.train import checkpoint_of, copy_shape, writes
from smolmoe.recipe import AlignRecipe
from smolmoe.results.outcome import alignment_measured


def run(recipe: AlignRecipe, folder: Path, report: Progress) -> Values:
    from smolmoe.alignment.run import align

    return align(recipe, resume=checkpoint_of(folder), overwrite=True, report=report).summary


def dry_run(recipe: AlignRecipe, folder: Path) -> Foreseen:
    from smolmoe.alignment.job import router_findings
    from smolmoe.moe.loading import Skeleton
    from smolmoe.training.models import model_folder

    source = model_folder(recipe.model)
    assert source is not None  # the recipe has a path
    copy_shape(source, folder)
    return Foreseen(warnings=tuple(map(str, router_findings(recipe, Skeleton(source).model, 1))))


def check(recipe: AlignRecipe) -> None:
    from smolmoe.alignment.arguments import check_trainer

    check_trainer(recipe)


def row(result: Values, folder: Path) -> Row:
    found = alignment_measured(result)[:2]
    return Row(result["after"]["loss"], found=", ".join(f"{one.name} {one}" for one in found))


STAGE = Stage(
    AlignRecipe,
    run,
    row,
    dry_run,
    check,
    writes,
    leaves={"": "model"},
    origin=lambda recipe: recipe.model.path or "new",
)
