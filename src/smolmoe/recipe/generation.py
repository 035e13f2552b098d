"""How a model writes: what `generate` and `chat` share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from smolmoe.recipe.base import Recipe
from smolmoe.recipe.words import Device, Seed

CHAT_TOKENS, RAW_TOKENS = 512, 100  # an answer ends by itself, a base model's text mostly does not
TEMPERATURE, TOP_P = 0.7, 0.95


class GenerationRecipe(Recipe):
    """Format, length, sampling and end of an answer, and the experts that write it.

    What is None is taken from the model's generation_config.json. If that sets none of temperature, top-p, top-k and
    min-p, `TEMPERATURE` and `TOP_P` are used.
    """

    system: str | None = Field(None, description="system message of the chat (default: the template's)")
    template: Path | None = Field(None, description="file with a Jinja chat template (default: the tokenizer's)")
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        description="maximum length of an answer, in tokens "
        f"(default: {CHAT_TOKENS} in chat format, {RAW_TOKENS} for raw text; fewer if the context ends before)",
    )
    temperature: float | None = Field(
        None, ge=0, description=f"sampling temperature; 0 is greedy (default: the model's own, or {TEMPERATURE})"
    )
    top_p: float | None = Field(
        None, gt=0, le=1, description=f"probability mass of nucleus sampling (default: the model's own, or {TOP_P})"
    )
    top_k: int | None = Field(
        None, ge=0, description="number of most likely tokens to sample from; 0 is all (default: the model's own, or 0)"
    )
    min_p: float | None = Field(
        None,
        ge=0,
        le=1,
        description="least probability of a token relative to the most likely one (default: the model's own, or 0)",
    )
    repetition_penalty: float | None = Field(
        None, gt=0, description="repetition penalty; 1 is none (default: the model's own, or 1)"
    )
    stop: str | Sequence[str] = Field((), description="text that ends an answer, and is left out of it")
    seed: Seed = 0
    experts: str | Sequence[str | int] | None = Field(
        None, description="names or indices of the experts to load; auto chooses them by a single prompt (default: all)"
    )
    offload_experts: bool = Field(False, description="experts kept on the CPU and moved as they are routed to")
    expert_memory: int | None = Field(
        None,
        description="memory for offloaded experts on the device, in bytes, or in MB on the command line "
        "(default: one layer and one token)",
    )
    device: Device = "auto"

    @field_validator("*", mode="before")
    @classmethod
    def _says_something(cls, value: Any, info: ValidationInfo) -> Any:
        """As in every recipe, but a line break can end an answer, and an empty system message is one."""
        if info.field_name == "system":
            return value
        if info.field_name != "stop":
            return super()._says_something(value, info)
        if any(part == "" for part in ([value] if isinstance(value, str) else value)):
            raise ValueError("must not be empty")
        return value

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class GenerateRecipe(GenerationRecipe):
    """Answers of a model, greedy by default, each with the expert that leads on its text."""

    model: str = Field(description="folder of the MoE")
    prompts: tuple[str, ...] = Field(min_length=1, description="prompts to answer")
    chat: bool | None = Field(
        None, description="prompts as messages of a chat (default: if the tokenizer has a chat template)"
    )
    temperature: float | None = Field(0.0, ge=0, description="sampling temperature; 0 is greedy")
    max_new_tokens: int | None = Field(60, ge=1, description="maximum length of an answer, in tokens")
