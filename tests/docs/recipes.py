"""YAML blocks: whole recipes, stages, or sections of either, each through the model that reads it."""

from __future__ import annotations

from typing import Any

from smolmoe.core.yaml_text import parse_yaml
from smolmoe.errors import RequestError
from smolmoe.recipe import PipelineRecipe, TrainRecipe, parse
from smolmoe.recipe.align import AlignRecipe

# What a recipe must have: a block that shows one section is read with these for the others.
REST: dict[type, dict[str, Any]] = {
    TrainRecipe: {"model": {"path": "m"}, "data": {"sources": [{"path": "d"}]}, "out": "o"},
    AlignRecipe: {"model": {"path": "m"}, "data": {"train": ["d"]}, "method": "sft", "out": "o"},
    PipelineRecipe: {"stages": [{"name": "a", "train": {}}], "out": "o"},
}


def check(text: str) -> None:
    """Whether some recipe takes this.

    Raises:
        AssertionError: none does, with what each says, or one of its stages is wrong.
    """
    values = parse_yaml(text)
    if isinstance(values, list):
        values = {"stages": values}
    said = []
    for model, rest in REST.items():
        try:
            recipe = parse(model, {**rest, **values})
        except RequestError as error:
            said.append(f"{model.__name__}: {error.field}: {error.message}")
            continue
        try:
            if isinstance(recipe, PipelineRecipe):
                check_stages(recipe, values)
        except RequestError as error:
            raise AssertionError(f"a stage: {error.field}: {error.message}") from error
        return
    raise AssertionError("; ".join(said))


def check_stages(recipe: PipelineRecipe, values: dict[str, Any]) -> None:
    """The stages' own values, too: references to stages that the block does not show stand for folders."""
    from smolmoe.recipe.files import merge

    for stage in recipe.stages:
        if stage.train is not None and "stages" in values:
            rest = {} if "data" in recipe.defaults or "data" in stage.train else {"data": {"sources": [{"path": "d"}]}}
            whole = merge({**rest, **recipe.defaults}, stage.train)
            skip = whole.get("data", {}).get("skip")
            if isinstance(skip, str):
                whole["data"] = {**whole["data"], "skip": 0}
            parse(TrainRecipe, {**REST[TrainRecipe], **whole})
