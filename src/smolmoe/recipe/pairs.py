"""Preference pairs from a model's own answers: a stage of a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from smolmoe.recipe.base import Recipe
from smolmoe.recipe.words import Device, Seed

TEMPERATURES = (1.0, 0.5)
PROMPTS = 4000
MAX_NEW_TOKENS = 128
BATCH_SIZE = 32
TEMPLATE = "{prompt}\n"


class PairsRecipe(Recipe):
    """Two answers to each prompt, of which the one nearer to a reference is preferred."""

    model: str = Field(description="folder or hub id of the model that answers")
    data: str = Field(description="file with prompts and references (.jsonl or .parquet)")
    source_column: str = Field(default="src", description="column of the prompt")
    target_column: str = Field(default="tgt", description="column of the reference")
    references_column: str | None = Field(
        default=None, description='column with a list of further references (default: "refs", if present)'
    )
    prompts: int = Field(default=PROMPTS, ge=1, description="maximum number of prompts sampled from the data")
    temperatures: tuple[float, float] = Field(
        default=TEMPERATURES, description="sampling temperatures of the two answers; 0 is greedy"
    )
    template: str = Field(default=TEMPLATE, description="template of the model's input; {prompt} is the text")
    chat: bool = Field(default=False, description="use of the tokenizer's chat template instead")
    max_new_tokens: int = Field(default=MAX_NEW_TOKENS, ge=1, description="maximum length of an answer, in tokens")
    batch_size: int = Field(default=BATCH_SIZE, ge=1, description="number of prompts in a batch")
    device: Device = "auto"
    seed: Seed = 0
    out: Path = Field(description="output folder for pairs.jsonl and report.json")

    @field_validator("temperatures", mode="before")
    @classmethod
    def _are_two_numbers(cls, given: Any) -> Any:
        try:
            numbers = tuple(float(part) for part in given)
        except (TypeError, ValueError):
            numbers = ()
        if len(numbers) != 2:
            raise ValueError("must be two numbers, e.g. 1.0 and 0.5")
        return numbers

    @field_validator("temperatures")
    @classmethod
    def _answers_can_differ(cls, temperatures: tuple[float, float]) -> tuple[float, float]:
        if any(not 0 <= temperature < float("inf") for temperature in temperatures):
            raise ValueError("each must be 0 (greedy) or above")
        if temperatures == (0, 0):
            raise ValueError("both are 0: greedy answers are the same, raise one")
        return temperatures
