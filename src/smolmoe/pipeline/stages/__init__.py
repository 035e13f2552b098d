"""The kinds of stages, one file each. A new kind is a file here, and its section in `recipe.pipeline.StageRecipe`."""

from __future__ import annotations

from importlib import import_module

from smolmoe.pipeline.stage import Stage
from smolmoe.recipe.pipeline import kinds

STAGES: dict[str, Stage] = {kind: import_module(f"{__name__}.{kind}").STAGE for kind in kinds()}
