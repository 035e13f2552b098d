"""Checks of models on disk: `smolmoe verify` and `smolmoe doctor`, and stages of a pipeline."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from smolmoe.recipe.base import Recipe
from smolmoe.recipe.words import Device, Seed


class DoctorRecipe(Recipe):
    """What would waste the training of an MoE."""

    moe: str = Field(description="folder of any transformers MoE")
    data: Path | None = Field(None, description="text to examine it on (default: of this Python)")
    device: Device = "auto"
    seed: Seed = Field(0, description="random seed")


class VerifyRecipe(Recipe):
    """An MoE's files measured against the dense model and the claim of the conversion."""

    dense: str = Field(description="folder of the dense model")
    moe: str = Field(description="folder of the MoE made from it")
    text: Path | None = Field(None, description="text to measure on, .txt or .jsonl (default: of this Python)")
    device: Device = "auto"
    seed: Seed = Field(0, description="random seed")
