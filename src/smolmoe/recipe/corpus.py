"""Text of a pipeline in two files, training and held out."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from smolmoe.recipe.base import Recipe
from smolmoe.recipe.data import SourceRecipe
from smolmoe.recipe.words import Seed


class CorpusRecipe(Recipe):
    """Documents with their domains in two files, train.jsonl and validation.jsonl; no text is in both, and none twice.

    They are read from sources, or are code, prose and mathematics from this Python installation.
    """

    sources: tuple[SourceRecipe, ...] = Field((), description="sources of the text (default: this Python installation)")
    validation_sources: tuple[SourceRecipe, ...] = Field(
        (), description="sources of separate held-out text; otherwise a share is held out"
    )
    megabytes: float = Field(4.5, gt=0, le=100, description="approximate size of the text of this Python, in MB")
    validation: float = Field(
        0.06, gt=0, lt=1, description="share of the documents to hold out, by a hash of their text"
    )
    seed: Seed = Field(0, description="random seed of the choice of text of this Python")
    out: Path = Field(description="output folder for the two files")
