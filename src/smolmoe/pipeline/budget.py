"""A pipeline's time budget: all trainings are shortened to the same share of their steps."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from smolmoe.core.files import write_json
from smolmoe.core.json_text import read_object, read_rows
from smolmoe.core.progress import Progress
from smolmoe.errors import OutputError, RequestError
from smolmoe.pipeline.forecast import foresee
from smolmoe.pipeline.stage import Values
from smolmoe.recipe import PipelineRecipe, StageRecipe, TrainRecipe, parse
from smolmoe.recipe.files import merge
from smolmoe.recipe.pipeline import BudgetRecipe

logger = logging.getLogger(__name__)

FILE = "budget.json"
TRIAL = ".trial"  # hidden: it is not a training of the pipeline
TRIED = 8  # steps of the trial


def shortened(recipe: PipelineRecipe, share: float) -> PipelineRecipe:
    """The pipeline with this share of each training's steps. A stage that matches another's FLOPs follows that one.

    Raises:
        RequestError: a training has no number of steps.
    """
    return recipe.model_copy(update={"stages": tuple(_shortened(stage, recipe, share) for stage in recipe.stages)})


def _shortened(stage: StageRecipe, recipe: PipelineRecipe, share: float) -> StageRecipe:
    if stage.train is None or stage.match_flops is not None:
        return stage
    steps = merge(recipe.defaults, stage.train).get("trainer", {}).get("max_steps", -1)
    if not isinstance(steps, int) or steps < 1:
        raise RequestError(
            "a budget shortens trainings by their number of steps, but this one has no number of steps.",
            field=f"stages.{stage.name}.train.trainer.max_steps",
            value=steps,
            fix="Set its max_steps.",
        )
    change = {"trainer": {"max_steps": max(1, round(share * steps))}}
    return stage.model_copy(update={"train": merge(stage.train, change)})


def known_share(out: Path, budget: BudgetRecipe) -> float | None:
    """The share that was found in the first run of the pipeline.

    Raises:
        OutputError: the budget was different.
    """
    if not (out / FILE).is_file():
        return None
    found = read_object(out / FILE, fix="Restore it, or name another folder with `out=...`")
    if found.get("minutes") != budget.minutes:
        raise OutputError(
            f"the budget was different (minutes: {found.get('minutes')} there, {budget.minutes} here).",
            field="budget",
            value=str(out),
            fix="Run the trainings again from the first (`start=...`), or name another folder with `out=...`",
        )
    return float(found["share"])


def find_share(recipe: PipelineRecipe, first: str, values: Values, report: Progress) -> float:
    """Time the first training, and record the share of all trainings' steps that fits into the budget.

    The times of the others follow from their FLOPs. All processes call this together.

    Args:
        first: name of the first training.
        values: of it.
    """
    from smolmoe.training.distributed import on_main

    assert recipe.budget is not None
    report("Timing this machine", 0, 0)
    step = _seconds_a_step(values, recipe.out / TRIAL)
    costs = {stage.name: stage.costs for stage in foresee(recipe) if stage.costs is not None}
    predicted = sum(cost.seconds for cost in costs.values())
    needed = predicted * step / (costs[first].seconds / costs[first].steps)
    share = min(1.0, max(recipe.budget.least, 60 * recipe.budget.minutes / needed))
    share = on_main(lambda: share)  # processes measure differently
    if share < 1:
        logger.warning("The time budget leaves %.0f%% of the steps of each training.", 100 * share)
    record = {"minutes": recipe.budget.minutes, "seconds_per_step": step, "seconds_needed": needed, "share": share}
    on_main(lambda: write_json(recipe.out / FILE, record))
    return share


def _seconds_a_step(values: Values, folder: Path) -> float:
    """Seconds per step, from the fastest step: slower ones show what else the machine was doing."""
    from smolmoe.training.distributed import on_main
    from smolmoe.training.estimate import blocks_a_step
    from smolmoe.training.run import train

    trainer = {"max_steps": TRIED, "logging_steps": 1, "save_strategy": "no"}
    changes = {"evaluation": {"tokens": 1, "every": TRIED, "at": []}, "trainer": trainer}
    trial = parse(TrainRecipe, merge(values, {**changes, "carry": None, "samples": None, "out": str(folder)}))
    try:
        rows = read_rows(train(trial, overwrite=True).out / "metrics.jsonl")
    finally:
        on_main(lambda: shutil.rmtree(folder, ignore_errors=True))
    fastest: float = max(row["tokens_per_second"] for row in rows if row["kind"] == "window")
    return blocks_a_step(trial) * trial.data.length / fastest
