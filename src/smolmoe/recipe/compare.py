"""Models compared on the same held-out text."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from smolmoe.recipe.base import Recipe
from smolmoe.recipe.words import Device


class CompareRecipe(Recipe):
    """One comparison; the first model is the baseline."""

    models: dict[str, str | tuple[str, ...]] = Field(
        min_length=2, description="name and folder of a model or run; several folders are seeds"
    )
    data: str = Field(description="held-out text: .jsonl, .parquet, .txt, folder, hub data set, or folder of a run")
    by: str | None = Field(None, description="column with the domain (default: one domain)")
    tokens: int | None = Field(
        None, ge=1, description="maximum number of tokens per domain (default: 20000, or the run's)"
    )
    document_tokens: int | None = Field(
        None, ge=2, description="maximum number of tokens per document (default: 1024, or the run's)"
    )
    length: int | None = Field(
        None, ge=2, description="maximum sequence length, in tokens (default: 256, or the run's)"
    )
    speed: bool = Field(True, description="latency, tokens per second and memory")
    device: Device = "auto"
    out: Path = Field(description="output folder for compare.json and table.md")
