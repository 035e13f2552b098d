"""What a sweep varies, and how far its law is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from smolmoe.recipe.base import Recipe, Seed


class SweepRecipe(Recipe):
    """Budgets and seeds of a training, or of a stage of a pipeline."""

    tokens: tuple[int, ...] = Field(min_length=1, description="training tokens of each budget")
    dense_tokens: tuple[int, ...] = Field((), description="of the dense training before the conversion: each, varied")
    seeds: tuple[Seed, ...] = Field((0,), min_length=1, description="of each budget's trainings")
    stage: str | None = Field(None, description="training of a pipeline to vary (default: the last)")
    until: int | None = Field(None, ge=1, description="tokens to draw the law to (default: 10x the largest budget)")
    start_tokens: int | None = Field(
        None, ge=0, description="that the starting model was trained on (default: what its folders say)"
    )
    out: Path = Field(description="folder of the sweep")

    @model_validator(mode="after")
    def _budgets_are_distinct(self) -> Self:
        for name in ("tokens", "dense_tokens", "seeds"):
            values = getattr(self, name)
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                raise ValueError(f"{twice:,} is among the {name.replace('_', ' ')} twice")
        if min((*self.tokens, *self.dense_tokens)) < 1:
            raise ValueError("a budget is at least one token")
        if self.until is not None and self.until < max(self.tokens):
            raise ValueError("the law reaches at least to the largest budget")
        return self
