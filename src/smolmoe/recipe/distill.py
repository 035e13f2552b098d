"""The cache of a teacher's targets."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from smolmoe.recipe.base import Recipe
from smolmoe.recipe.words import Device


class CacheRecipe(Recipe):
    """A cache of a teacher's probabilities for every token of a text."""

    teacher: str = Field(description="folder or hub id of the teacher, with its tokenizer")
    data: list[str] = Field(
        min_length=1, description="file, folder, preset or hub data set, or a training recipe (.yaml) for its text"
    )
    out: Path = Field(description="output folder of the cache")
    top_k: int | None = Field(None, description="number of largest probabilities stored per token (default: 20)")
    sampled: int | None = Field(None, description="number of samples stored per token, instead of the largest")
    temperature: float = Field(1.0, description="temperature of the logits, the same as the student's in training")
    device: Device = "auto"
    batch_tokens: int = Field(8192, description="number of tokens in a batch")

    @field_validator("data", mode="before")
    @classmethod
    def _may_be_one(cls, data: object) -> object:
        return [data] if isinstance(data, str) else data
