"""Models compared on the same held-out text."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from smolmoe.recipe.base import Recipe


class CompareRecipe(Recipe):
    """One comparison; the first model is the baseline."""

    models: dict[str, str | tuple[str, ...]] = Field(
        min_length=2, description="name -> folder of a model or of a run; several of them are random seeds"
    )
    data: str = Field(description="text file, or the folder of a run, whose held-out text is read")
    by: str | None = Field(None, description="column of a row's domain")
    tokens: int | None = Field(None, ge=1, description="tokens of each domain at most (default: as the run measures)")
    document_tokens: int | None = Field(None, ge=2, description="tokens of one document at most")
    length: int | None = Field(None, ge=2, description="tokens of one window at most")
    speed: bool = Field(True, description="measure latency, tokens per second and memory")
    device: str = Field("cpu", description="where to compute")
    out: Path = Field(description="folder of the comparison")
