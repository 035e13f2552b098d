"""Import of a GGUF file, in a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from smolmoe.recipe.base import Recipe


class ImportRecipe(Recipe):
    """A GGUF file as a plain checkpoint."""

    source: Path = Field(description="GGUF file")
    dtype: Literal["float32", "float16", "bfloat16"] | None = Field(
        None, description="dtype of the weights (default: the file's if it is a float type, else float32)"
    )
    tokenizer: str | None = Field(None, description="folder or hub id of a tokenizer that replaces the file's")
    out: Path = Field(description="output folder")
