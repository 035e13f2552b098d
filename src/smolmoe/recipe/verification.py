"""Checks of models on disk: `smolmoe verify` and `smolmoe doctor`, and stages of a pipeline."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from smolmoe.recipe.base import Recipe
from smolmoe.recipe.words import Device, Seed
from smolmoe.results.verification import QUICK_LEAVES_OUT, VerifyMode


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
    mode: VerifyMode = Field(
        "full", description=f"extent of the measurement; quick uses 2 sequences of 6 and leaves out {QUICK_LEAVES_OUT}"
    )
    device: Device = "auto"
    seed: Seed = Field(0, description="random seed")
