"""A training; its model is in `model/` of its folder."""

from __future__ import annotations

from pathlib import Path

from smolmoe.core import units
from smolmoe.core.model_config import read_config
from smolmoe.core.progress import Progress
from smolmoe.pipeline.hollow import Shapes, write_model, write_skeleton
from smolmoe.pipeline.stage import Foreseen, Row, Stage, Values
from smolmoe.recipe import TrainRecipe
from smolmoe.results.outcome import training_measured


def run(recipe: TrainRecipe, folder: Path, report: Progress) -> Values:
    from smolmoe.training.run import train

    return train(recipe, resume=checkpoint_of(folder), overwrite=True, report=report).summary


def checkpoint_of(folder: Path) -> str | None:
    """The checkpoint of an interrupted run, or None."""
    from smolmoe.training.checkpoints import whole_checkpoints
    from smolmoe.training.distributed import on_main

    return on_main(lambda: "latest" if folder.is_dir() and whole_checkpoints(folder) else None)


def dry_run(recipe: TrainRecipe, folder: Path) -> Foreseen:
    from smolmoe.training.run import estimate

    _write_model(recipe, folder)
    costs = estimate(recipe)
    return Foreseen(costs.size.total, costs.size.active, costs, tuple(map(str, costs.findings)))


def _write_model(recipe: TrainRecipe, folder: Path) -> None:
    from smolmoe.training.estimate import skeleton
    from smolmoe.training.models import model_folder

    source = model_folder(recipe.model)
    if source is not None:  # continued training keeps the shape
        copy_shape(source, folder)
        return
    write_skeleton(folder / "model", skeleton(recipe))


def copy_shape(source: Path, folder: Path) -> None:
    """Write the model of a training of this one, without weights."""
    from smolmoe.core.checkpoint import open_checkpoint

    shapes: Shapes = {name: info.shape for name, info in open_checkpoint(source).tensors.items()}
    write_model(folder / "model", read_config(source, "model"), shapes)


def check(recipe: TrainRecipe) -> None:
    from smolmoe.training.arguments import check_trainer

    check_trainer(recipe)


def row(result: Values, folder: Path) -> Row:
    size, held_out = result["parameters"], result["held_out"]
    samples = (f"{sample['prompt'].strip()}\n{sample['text'].strip()}" for sample in result["samples"])
    return Row(
        held_out["loss"],
        held_out["by_domain"],
        f"{units.model_size(size['total'], size['active'])}, {result['steps']:,} steps{_change(result)}",
        "\n".join(f"--- {folder.name}: {sample}" for sample in samples),
    )


def _change(result: Values) -> str:
    """E.g. ", 3.9447 -> 3.8012"; empty if the loss was not measured before."""
    found = training_measured(result)[0]
    return "" if found.before is None else f", {found}"


def writes() -> tuple[str, ...]:
    from smolmoe.training.folder import ALL

    return ALL


STAGE = Stage(
    TrainRecipe,
    run,
    row,
    dry_run,
    check,
    writes,
    leaves={"": "model", "run": ""},
    shares=lambda defaults: defaults,
    origin=lambda recipe: recipe.model.path or "new",
    collective=True,
)
