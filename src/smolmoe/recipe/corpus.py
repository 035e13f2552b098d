"""Text to begin with where there is none."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from smolmoe.recipe.base import Recipe
from smolmoe.recipe.words import Seed


class CorpusRecipe(Recipe):
    """Code, prose and mathematics from this Python installation, in two files: train.jsonl and validation.jsonl."""

    megabytes: float = Field(4.5, gt=0, le=100, description="megabytes of text, roughly")
    validation: float = Field(0.06, gt=0, lt=1, description="share of the documents that is held out")
    seed: Seed = Field(0, description="random seed of the choice of text")
    out: Path = Field(description="folder of the two files")
