"""Text for a first run, if no other text is available."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from smolmoe.recipe.base import Recipe
from smolmoe.recipe.words import Seed


class CorpusRecipe(Recipe):
    """Code, prose and mathematics from this Python installation, in two files: train.jsonl and validation.jsonl."""

    megabytes: float = Field(4.5, gt=0, le=100, description="approximate size of the text, in MB")
    validation: float = Field(0.06, gt=0, lt=1, description="share of the documents to hold out")
    seed: Seed = Field(0, description="random seed of the choice of text")
    out: Path = Field(description="output folder for the two files")
