"""The shipped pipelines `quickstart`, from text to a trained MoE, and `quickstart-model`, on a model of the user's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from smolmoe.core.progress import Progress
from smolmoe.errors import RequestError, SourceError
from smolmoe.recipe.files import change, load
from smolmoe.recipe.words import Overwrite, Seed

if TYPE_CHECKING:
    from smolmoe.pipeline.run import PipelineResult
    from smolmoe.recipe import PipelineRecipe

NAME, OF_A_MODEL = "quickstart", "quickstart-model"
SOURCE = "stages.moe.upcycle.source"
_SEEDS = ("defaults.seed", "defaults.data.seed", "stages.corpus.corpus.seed", "stages.moe.upcycle.seed")


def quickstart(
    out: Annotated[
        str | Path | None,
        Field(description="output folder of the run (default: runs/quickstart, with the name of the model)"),
    ] = None,
    *,
    model: Annotated[
        str | Path | None,
        Field(description="folder, GGUF file or hub id of a dense model (default: a small one is trained)"),
    ] = None,
    minutes: Annotated[
        float | None,
        Field(description="most minutes of training in all (default: 2; a model's few steps have no limit)"),
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    changes: Sequence[str] = (),
    report: Progress | None = None,
) -> PipelineResult:
    """Convert, verify, train and report on a small example.

    A small dense model is trained on text of this Python and upcycled, and the MoE is examined, trained and compared
    with the dense model. With --model, a model is upcycled and verified, its experts are named by a short training of
    the routers, and it answers three prompts. Finished stages are skipped.

    Args:
        changes: `section.key=value` of the recipe.

    Raises:
        OutputError: `out` holds a run with other settings, or something else.
        RequestError: the model needs more memory than there is.
        SourceError: the model is not one that can be upcycled.
        VerificationError: the MoE's files do not satisfy the claim, or the MoE has an error.
    """
    from smolmoe.pipeline.run import run
    from smolmoe.recipe import PipelineRecipe, parse

    name = NAME if model is None else OF_A_MODEL
    values = load(name, kind="pipeline")
    change(values, dict.fromkeys(_SEEDS, seed))
    if minutes is not None:
        change(values, {"budget.minutes": minutes, "budget.least": 0})
    if model is not None:
        _use(str(model), values)
    change(values, changes)
    values["out"] = str(out or default_folder(model))
    recipe = parse(PipelineRecipe, values)
    if model is not None:
        _check(recipe, str(model))
    return run(recipe, start=recipe.stages[0].name if overwrite else None, report=report)


def default_folder(model: str | Path | None) -> Path:
    """runs/quickstart, or runs/quickstart-NAME."""
    if model is None:
        return Path("runs", NAME)
    name = re.sub(r"[^a-z0-9._-]+", "-", Path(model).resolve().name.lower().removesuffix(".gguf")).strip("-.")
    return Path("runs", f"{NAME}-{name}" if name else OF_A_MODEL)


def _use(model: str, values: dict[str, Any]) -> None:
    """Put a model into the recipe; a GGUF file is imported first."""
    from smolmoe.core.files import expanded

    file = expanded(model)
    is_gguf = file.suffix == ".gguf" and file.is_file()
    if is_gguf:
        values["stages"].insert(0, {"name": "model", "import_model": {"source": str(file)}})
    change(values, {SOURCE: "{model}" if is_gguf else model})


def _check(recipe: PipelineRecipe, model: str) -> None:
    """Refuse, before anything is written, a model that cannot be converted or that does not fit into memory.

    Raises:
        RequestError, SourceError: as `quickstart`.
    """
    from smolmoe.core import units
    from smolmoe.core.devices import pick_device
    from smolmoe.core.machine import free_memory
    from smolmoe.pipeline.forecast import forecast

    try:
        costs = [stage.costs for stage in forecast(recipe) if stage.costs is not None]
    except SourceError as error:
        raise _with_import(error, model) from None
    needed, free = max(cost.memory_bytes for cost in costs), free_memory(pick_device("auto"))
    if needed > free:
        raise RequestError(
            f"it needs about {units.size(needed)} of memory, and {units.size(free)} are free.",
            field="model",
            value=model,
            fix=f"Use a smaller model. Without this check: `smolmoe run {OF_A_MODEL} --set {SOURCE}={model}`.",
        )


def _with_import(error: SourceError, model: str) -> SourceError:
    """An error whose remedy is an option of `smolmoe import`, with that command."""
    commands = {
        "`text_model=True`": f"smolmoe import {model} FOLDER --text-model",
        "`dequantise=True`": f"smolmoe import {model} FOLDER --dequantise",
    }
    command = next((command for word, command in commands.items() if word in (error.fix or "")), None)
    if command is None:
        return error
    fix = f"Import it first, and use that folder: `{command}`."
    return SourceError(error.message, field=error.field, value=error.value, fix=fix)
