"""Runs put together: stages in order, each in a folder of its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from smolmoe.recipe.base import Recipe

KINDS = ("train", "upcycle", "boundary")


class StageRecipe(Recipe):
    """One stage: exactly one of its kinds. In any value, `{name}` is the model folder that stage `name` wrote."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="of the stage, and of its folder")
    train: dict[str, Any] | None = Field(None, description="a training recipe, without `out`")
    upcycle: dict[str, Any] | None = Field(None, description="options of `smolmoe upcycle`, without OUT")
    boundary: dict[str, str] | None = Field(
        None, description="label -> training stage; the first one is the dense model's training before the conversion"
    )

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> Self:
        if sum(getattr(self, kind) is not None for kind in KINDS) != 1:
            raise ValueError(f"a stage is exactly one of {', '.join(KINDS)}")
        return self

    @property
    def kind(self) -> str:
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def values(self) -> dict[str, Any]:
        values: dict[str, Any] = getattr(self, self.kind)
        return values


class PipelineRecipe(Recipe):
    """Stages in order. Values under `defaults` are those of every training stage that does not say otherwise."""

    defaults: dict[str, Any] = Field(default_factory=dict, description="what all training stages share")
    stages: tuple[StageRecipe, ...] = Field(min_length=1, description="in the order in which they run")
    out: Path = Field(description="folder of the whole")

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [stage.name for stage in self.stages]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two stages are called {twice!r}")
        return self


REFERENCE = re.compile(r"\{([a-z0-9][a-z0-9._-]*)\}")
