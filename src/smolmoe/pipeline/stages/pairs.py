"""Preference pairs from a model's own answers."""

from __future__ import annotations

from pathlib import Path

from smolmoe.core.progress import Progress
from smolmoe.pipeline.stage import Row, Stage, Values
from smolmoe.recipe import PairsRecipe


def run(recipe: PairsRecipe, folder: Path, report: Progress) -> Values:
    from smolmoe.alignment.pairs_run import run_pairs

    return run_pairs(recipe, report=report)


def row(result: Values, folder: Path) -> Row:
    return Row(found=f"{result['pairs']:,} pairs of {result['prompts']:,} prompts")


def writes() -> tuple[str, ...]:
    from smolmoe.alignment.pairs import WRITTEN

    return WRITTEN


STAGE = Stage(PairsRecipe, run, row, writes=writes, leaves={"": "pairs.jsonl"}, origin=lambda recipe: recipe.model)
