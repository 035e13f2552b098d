"""What to measure of the cost of running a model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from smolmoe.recipe.base import Recipe
from smolmoe.recipe.words import Device, Seed


class BenchRecipe(Recipe):
    """One benchmark of a model, or of two in turns."""

    model: str = Field(description="folder or hub id of a dense or MoE model")
    against: str | None = Field(None, description="folder or hub id of a second model, measured alternately")
    batch_sizes: tuple[int, ...] = Field((1, 4, 16), description="batch sizes, in prompts")
    prompt_tokens: int = Field(128, description="length of a prompt, in tokens")
    new_tokens: int = Field(16, description="number of tokens generated per prompt")
    rounds: int = Field(3, description="number of measured rounds per batch size")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="dtype of the weights (default: as stored)"
    )
    experts: str | None = Field(
        None, description="experts implementation: smolmoe, eager, grouped_mm, batched_mm, ... (default: smolmoe)"
    )
    train: bool = Field(True, description="FLOPs of a training step, with the backward pass")
    device: Device = "cpu"
    threads: int | None = Field(None, description="number of CPU threads (default: torch's)")
    seed: Seed = 0
    out: Path | None = Field(None, description="JSON file for the result (default: none)")
