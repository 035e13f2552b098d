"""The shipped pipeline `quickstart`: from text to a trained and measured MoE."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from smolmoe.core.progress import Progress
from smolmoe.pipeline.run import PipelineResult, run
from smolmoe.recipe import PipelineRecipe, parse
from smolmoe.recipe.files import load

NAME = "quickstart"
_SEEDS = ("defaults.seed", "defaults.data.seed", "stages.corpus.corpus.seed", "stages.moe.upcycle.seed")


def quickstart(
    out: str | Path = "runs/quickstart",
    *,
    minutes: float | None = None,
    seed: int = 0,
    overwrite: bool = False,
    changes: Sequence[str] = (),
    report: Progress | None = None,
) -> PipelineResult:
    """Train a small dense model on text of this Python, upcycle it, examine and train the MoE, compare it with dense.

    Finished stages are not run again.

    Args:
        out: folder of the pipeline.
        minutes: how long the trainings may take together; default the recipe's 5, or longer on a slow machine.
        seed: random seed of text, weights and training.
        overwrite: start over in a folder that holds a run.
        changes: `section.key=value` of the recipe.
        report: progress.

    Raises:
        OutputError: `out` holds a run with other settings, or something else.
        VerificationError: the MoE's files do not do what was claimed, or could not be trained.
    """
    own = [f"out={out}", *(f"{key}={seed}" for key in _SEEDS)]
    if minutes is not None:
        own += [f"budget.minutes={minutes}", "budget.least=0"]
    values = load(NAME, [*own, *changes], kind="pipeline")
    values["out"] = str(out)  # as it is, not as YAML reads it
    recipe = parse(PipelineRecipe, values)
    return run(recipe, start=recipe.stages[0].name if overwrite else None, report=report)
