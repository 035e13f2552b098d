"""The options of each stage: its section with defaults and references filled in."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from smolmoe.errors import RequestError
from smolmoe.pipeline.stage import Values
from smolmoe.pipeline.stages import STAGES
from smolmoe.recipe import PipelineRecipe, Recipe, StageRecipe, TrainRecipe, parse
from smolmoe.recipe.files import merge
from smolmoe.recipe.pipeline import SOURCE

BLOCKS = "blocks"  # of a training: a number; other references are paths
_WORDS = sorted({BLOCKS, *(word for kind in STAGES.values() for word in kind.leaves if word)})
_REFERENCE = re.compile(rf"\{{([a-z0-9][a-z0-9_-]*)(?:\.({'|'.join(_WORDS)}))?\}}")


@dataclass(frozen=True)
class _Known:
    """A stage that comes before the one being read."""

    kind: str
    values: Values
    steps_known: bool


def resolved(recipe: PipelineRecipe) -> dict[str, Values]:
    """Each stage's values, with defaults and references filled in, checked as far as possible beforehand.

    Raises:
        RequestError: naming stage and key.
    """
    before: dict[str, _Known] = {}
    for stage in recipe.stages:
        with _naming(stage):
            values = _values(stage, recipe, before)
        before[stage.name] = _Known(stage.kind, values, stage.match_flops is None)
    return {name: stage.values for name, stage in before.items()}


def section(stage: StageRecipe, values: Values) -> Any:
    """A stage's values, parsed."""
    return parse(STAGES[stage.kind].recipe, values)


def check_stages(recipe: PipelineRecipe, values: Mapping[str, Values], *, done: Collection[str] = ()) -> None:
    """Refuse what this machine cannot do, before the first stage: devices, packages, trainer values.

    Args:
        values: of each stage, from `resolved`.
        done: stages that are not run again.

    Raises:
        RequestError: naming stage and key.
    """
    from smolmoe.core.devices import pick_device

    for stage in recipe.stages:
        if stage.name in done:
            continue
        parsed = section(stage, values[stage.name])
        with _naming(stage):
            if "device" in type(parsed).model_fields:
                pick_device(parsed.device)
            STAGES[stage.kind].check(parsed)


@contextmanager
def _naming(stage: StageRecipe) -> Iterator[None]:
    """Add the stage to the field of a refusal."""
    try:
        yield
    except RequestError as error:
        field = f"stages.{stage.name}.{stage.kind}.{error.field}"
        raise RequestError(error.message, field=field, value=error.value, fix=error.fix) from None


def _values(stage: StageRecipe, recipe: PipelineRecipe, before: Mapping[str, _Known]) -> Values:
    kind, given = STAGES[stage.kind], getattr(stage, stage.kind)
    own: Values = given.model_dump() if isinstance(given, Recipe) else given
    for name in (*([stage.match_flops] if stage.match_flops is not None else []), *kind.follows(own)):
        _require(name, before, ("train",))
    values = _fill(merge(kind.shares(recipe.defaults), own), recipe, before)
    if isinstance(given, Recipe):
        values = {**own, **values}  # `merge` leaves out None
    if "out" in kind.recipe.model_fields:
        values |= {"out": str(recipe.out / stage.name)}
    parsed = parse(kind.recipe, values)
    if isinstance(parsed, TrainRecipe):  # a number after the check
        values |= {"data": {**values["data"], "skip": parsed.data.skip}}
    return values


def _require(name: str, before: Mapping[str, _Known], wanted: tuple[str, ...]) -> _Known:
    if name not in before or before[name].kind not in wanted:
        there = [known for known, stage in before.items() if stage.kind in wanted]
        raise RequestError(
            f"no stage before this one has the name {name!r} and the kind {' or '.join(wanted)}.",
            field="reference",
            value=name,
            fix=f"There are {', '.join(there)}." if there else "No such stage is before it.",
        )
    return before[name]


def _fill(value: Any, recipe: PipelineRecipe, before: Mapping[str, _Known]) -> Any:
    """The value with `{source}`, `{stage}`, `{stage.run}` and the like replaced by paths and numbers."""
    if isinstance(value, dict):
        return {key: _fill(inner, recipe, before) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_fill(inner, recipe, before) for inner in value]
    if not isinstance(value, str):
        return value

    def found(match: re.Match[str]) -> str:
        name, word = match[1], match[2] or ""
        if name == SOURCE and not word and recipe.source is not None:
            return recipe.source
        if word == BLOCKS:
            return str(_blocks(name, _require(name, before, ("train",))))
        stage = _require(name, before, tuple(kind for kind, one in STAGES.items() if word in one.leaves))
        return str(recipe.out / name / STAGES[stage.kind].leaves[word])

    return _REFERENCE.sub(found, value)


def _blocks(name: str, stage: _Known) -> int:
    """Blocks of its data that a training has read at its end, plus those that it skipped."""
    from smolmoe.training.estimate import blocks_a_step

    recipe = parse(TrainRecipe, stage.values)
    steps = int(recipe.trainer.get("max_steps", -1))
    if steps < 0 or not stage.steps_known:
        raise RequestError(
            "the number of blocks that it reads is not known beforehand.",
            field="reference",
            value=f"{name}.{BLOCKS}",
            fix=f"Give {name} trainer.max_steps, or this stage a number.",
        )
    return recipe.data.skip + steps * blocks_a_step(recipe)


def with_matched_steps(values: Values, flops: float) -> Values:
    """The values of a training with the number of steps that matches these FLOPs."""
    from smolmoe.training.estimate import steps_for_flops

    steps = steps_for_flops(parse(TrainRecipe, values), flops)
    return values | {"trainer": {**values.get("trainer", {}), "max_steps": steps}}
