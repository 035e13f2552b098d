"""Answers of a model to prompts, in a pipeline."""

from __future__ import annotations

from pydantic import Field

from smolmoe.recipe.base import Recipe
from smolmoe.recipe.words import Device


class GenerateRecipe(Recipe):
    """Greedy answers of a model, each with the expert that leads on its text."""

    model: str = Field(description="folder of the MoE")
    prompts: tuple[str, ...] = Field(min_length=1, description="prompts to answer")
    new_tokens: int = Field(60, ge=1, description="maximum length of an answer, in tokens")
    chat: bool | None = Field(
        None, description="prompts as messages of a chat (default: if the tokenizer has a chat template)"
    )
    device: Device = "cpu"
