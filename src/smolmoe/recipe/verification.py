"""Checks of models on disk, as stages of a pipeline."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from smolmoe.recipe.base import Recipe
from smolmoe.recipe.words import Seed


class DoctorRecipe(Recipe):
    """What would waste the training of an MoE."""

    moe: str = Field(description="folder of the MoE")
    data: Path | None = Field(None, description="text to examine it on (default: of this Python installation)")
    device: str = Field("cpu", description="where to compute")
    seed: Seed = Field(0, description="random seed of the choice of text")


class VerifyRecipe(Recipe):
    """An MoE's files measured against the dense model and the claim of the conversion."""

    dense: str = Field(description="folder of the dense model")
    moe: str = Field(description="folder of the MoE made from it")
    text: Path | None = Field(None, description="text to measure on (default: of this Python installation)")
    device: str = Field("cpu", description="where to compute")
    seed: Seed = Field(0, description="random seed of the choice of text and of the random control")
