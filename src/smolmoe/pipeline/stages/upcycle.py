"""A conversion of a dense model into an MoE."""

from __future__ import annotations

from pathlib import Path

from smolmoe.core import units
from smolmoe.core.progress import Progress
from smolmoe.pipeline.hollow import write_model
from smolmoe.pipeline.stage import Foreseen, Row, Stage, Values
from smolmoe.pipeline.stages.verify import verdict
from smolmoe.recipe import UpcycleRecipe


def run(recipe: UpcycleRecipe, folder: Path, report: Progress) -> Values:
    from smolmoe.surgery.run import run_upcycle

    # An interrupted run may have left something; a finished stage is not run again.
    return run_upcycle(recipe.model_copy(update={"overwrite": True}), report=report).to_json()


def dry_run(recipe: UpcycleRecipe, folder: Path) -> Foreseen:
    from smolmoe.core.checkpoint import open_checkpoint
    from smolmoe.surgery.plan import make_plan

    specialists = {name: open_checkpoint(path, field=f"expert {name}") for name, path in recipe.expert.items()}
    plan = make_plan(recipe, open_checkpoint(recipe.source, revision=recipe.revision), specialists)
    write_model(folder, plan.config, {tensor.name: tensor.shape for tensor in plan.tensors})
    said = tuple(f"warning: {warning}" for warning in plan.warnings)
    return Foreseen(plan.parameters.total, plan.parameters.active, warnings=said)


def row(result: Values, folder: Path) -> Row:
    size = result["parameters"]["moe"]
    said = [result["architecture"], units.model_size(size["total"], size["active"]), verdict(result["verification"])]
    return Row(found=", ".join(filter(None, said)))


def writes() -> tuple[str, ...]:
    from smolmoe.core.model_folder import OF_A_MODEL

    return OF_A_MODEL


STAGE = Stage(UpcycleRecipe, run, row, dry_run, writes=writes, leaves={"": ""}, origin=lambda recipe: recipe.source)
