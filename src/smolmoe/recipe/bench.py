"""One benchmark: which models, and how they are measured."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from smolmoe.recipe.base import Recipe
from smolmoe.results.bench import BenchSettings


class BenchRecipe(BenchSettings, Recipe):
    """One benchmark of a model, or of two in turns."""

    model: str = Field(description="folder or hub id of a dense or MoE model")
    against: str | None = Field(None, description="folder or hub id of a second model, measured alternately")
    out: Path | None = Field(None, description="JSON file for the result (default: none)")

    @property
    def settings(self) -> BenchSettings:
        """How both models are measured."""
        return BenchSettings(**self.model_dump(include=set(BenchSettings.model_fields)))
