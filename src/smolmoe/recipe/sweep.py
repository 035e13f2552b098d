"""A sweep over token budgets, and the range of its scaling law."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from smolmoe.recipe.base import Recipe
from smolmoe.recipe.words import Seed

_UNITS = {"": 1, "K": 1e3, "M": 1e6, "B": 1e9}
_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)(?:[eE]\+?(\d+))?([KMB]?)", re.IGNORECASE)


def _count(value: Any) -> Any:
    """1.5M as 1500000."""
    if not isinstance(value, str):
        return value
    match = _NUMBER.fullmatch(value.strip())
    if match is None:
        raise ValueError("must be a number of tokens such as 500000, 500K, 0.5M or 5e5")
    digits, power, unit = match.groups()
    return round(float(digits) * 10 ** int(power or 0) * _UNITS[unit.upper()])


def _seeds(value: Any) -> Any:
    """A number of seeds as that many."""
    if isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], str):
        value = int(value[0]) if value[0].isdecimal() else value
    if not isinstance(value, int):
        return value
    if value < 1:
        raise ValueError("must be at least 1")
    return tuple(range(value))


Count = Annotated[int, BeforeValidator(_count)]
Counts = tuple[Count, ...]
Seeds = Annotated[tuple[Seed, ...], BeforeValidator(_seeds)]


class SweepRecipe(Recipe):
    """Budgets and seeds of a training, or of a stage of a pipeline."""

    tokens: Counts = Field(min_length=1, description="budgets of training tokens, e.g. 0.5M,1M,2M")
    dense_tokens: Counts = Field(
        (), description="budgets of the dense training before the conversion, for a pipeline (default: as it is)"
    )
    seeds: Seeds = Field((0,), min_length=1, description="number of runs per budget, or their seeds (default: 1)")
    stage: str | None = Field(None, description="training stage of a pipeline whose tokens vary (default: the last)")
    until: Count | None = Field(
        None, ge=1, description="largest number of tokens the law is extrapolated to (default: 10x the largest budget)"
    )
    start_tokens: Count | None = Field(
        None, ge=0, description="number of tokens the initial model was trained on (default: as recorded in its folder)"
    )
    out: Path = Field(description="output folder (default: the recipe's, with -sweep)")

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
