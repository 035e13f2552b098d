"""The page of a pipeline."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from smolmoe.recipe.base import Recipe


class PageRecipe(Recipe):
    """One page, `index.html`, on what all stages before it wrote."""

    out: Path = Field(description="output folder")
