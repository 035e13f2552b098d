"""The shipped pipeline `quickstart`: from text to a trained and measured MoE."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from smolmoe.core.progress import Progress
from smolmoe.recipe.files import load
from smolmoe.recipe.words import Overwrite, Seed

if TYPE_CHECKING:
    from smolmoe.pipeline.run import PipelineResult

NAME = "quickstart"
_SEEDS = ("defaults.seed", "defaults.data.seed", "stages.corpus.corpus.seed", "stages.moe.upcycle.seed")


def quickstart(
    out: Annotated[str | Path, Field(description="output folder of the run")] = Path("runs/quickstart"),
    *,
    minutes: Annotated[
        float | None, Field(description="most minutes of training in all (default: the recipe's, 5)")
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    changes: Sequence[str] = (),
    report: Progress | None = None,
) -> PipelineResult:
    """Train, upcycle, verify and report on a small example.

    A small dense model is trained on text of this Python and upcycled, and the MoE is examined, trained and compared
    with the dense model. Finished stages are skipped.

    Args:
        changes: `section.key=value` of the recipe.

    Raises:
        OutputError: `out` holds a run with other settings, or something else.
        VerificationError: the MoE's files do not satisfy the claim, or the MoE has an error.
    """
    from smolmoe.pipeline.run import run
    from smolmoe.recipe import PipelineRecipe, parse

    own = [f"out={out}", *(f"{key}={seed}" for key in _SEEDS)]
    if minutes is not None:
        own += [f"budget.minutes={minutes}", "budget.least=0"]
    values = load(NAME, [*own, *changes], kind="pipeline")
    values["out"] = str(out)  # literally, not parsed as YAML
    recipe = parse(PipelineRecipe, values)
    return run(recipe, start=recipe.stages[0].name if overwrite else None, report=report)
