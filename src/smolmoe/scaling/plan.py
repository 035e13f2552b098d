"""The plan of a sweep: recipe, starts, schedule and folders."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolmoe.errors import RequestError
from smolmoe.pipeline.resolve import resolved
from smolmoe.recipe import PipelineRecipe, TrainRecipe, parse
from smolmoe.recipe.files import kind_of, merge
from smolmoe.recipe.sweep import SweepRecipe
from smolmoe.scaling.rate import Rate, rate_of
from smolmoe.training.estimate import blocks_a_step

SAVES = 5  # default number of checkpoints of a run


@dataclass(frozen=True)
class Start:
    """The start of the trainings of one curve.

    Attributes:
        name: of the curve.
        pipeline: the stages that make the starting model, and the varied stage last; None if the recipe is one
            training.
        values: of the varied training, complete except for those that a budget sets.
        dense_tokens: of the dense training; None if not varied.
        folder: of the curve's trainings.
    """

    name: str
    pipeline: PipelineRecipe | None
    values: dict[str, Any]
    dense_tokens: int | None
    folder: Path

    @property
    def before(self) -> PipelineRecipe | None:
        """The stages that make the starting model, if any."""
        if self.pipeline is None or len(self.pipeline.stages) == 1:
            return None
        return self.pipeline.model_copy(update={"stages": self.pipeline.stages[:-1]})


@dataclass(frozen=True)
class Plan:
    """The plan of a sweep.

    Attributes:
        request: the parsed request.
        name: of the recipe.
        stage: the varied one of a pipeline.
        starts: one, or one for each dense budget.
        rate: of the varied training.
        steps: of each budget, ascending; `step_tokens` are the tokens per step.
        settings: values that determine the trainings, except budgets and seeds.
    """

    request: SweepRecipe
    name: str
    stage: str | None
    starts: tuple[Start, ...]
    rate: Rate
    steps: tuple[int, ...]
    step_tokens: int
    settings: dict[str, Any]

    @property
    def largest(self) -> int:
        return self.steps[-1] * self.step_tokens

    @property
    def until(self) -> int:
        return max(self.largest, self.request.until or 10 * self.largest)

    def recipe(self, start: Start, seed: int, steps: int, out: Path, *, whole: bool = True) -> TrainRecipe:
        """The recipe of one run, of a budget or of the trunk that leads to it."""
        base = parse(TrainRecipe, {**start.values, "out": str(out)})
        data = {"seed": base.data.seed + seed}
        if base.data.skip:  # the same order, further along: another order would include the skipped blocks
            data = {"skip": base.data.skip + seed * self.steps[-1] * self.step_tokens // base.data.length}
        saves = {"save_steps": max(1, math.ceil(steps / SAVES)), "save_total_limit": 1, **base.trainer}
        if self.rate.kind != "own":
            saves["save_strategy"] = "steps"  # other runs start from here
        trainer = {**saves, **self.rate.trainer(steps, whole=whole)}
        trainer.pop("num_train_epochs", None)
        changes = {
            "seed": base.seed + seed,
            "data": data,
            "evaluation": {"every": steps, "at": []},
            "samples": {"prompts": []},
        }
        return parse(TrainRecipe, merge(start.values, changes) | {"trainer": trainer, "out": str(out)})


def make_plan(name: str, values: Mapping[str, Any], request: SweepRecipe) -> Plan:
    """The plan of a sweep over a recipe's values; nothing is read or written.

    Raises:
        RequestError: budgets with the same number of steps, no such stage, a schedule without room, or held-out text
            that would not be the same for all.
    """
    if kind_of(values) == "pipeline":
        stage, starts = _of_pipeline(name, values, request)
    else:
        stage, starts = None, (_of_training(name, values, request),)
    recipe = parse(TrainRecipe, {**starts[0].values, "out": str(request.out)})
    _check_held_out(starts)
    step_tokens = _step_tokens(recipe)
    steps = tuple(sorted(_steps(budget, step_tokens, "tokens") for budget in request.tokens))
    _check_distinct(steps, step_tokens, "tokens")
    rate = rate_of(recipe, steps)
    asked = {"stage": stage, "recipe": {key: value for key, value in values.items() if key != "out"}}
    settings = {**_flat(asked), "warm-up steps": rate.warmup, "share of decay": rate.decay}
    return Plan(request, name, stage, starts, rate, steps, step_tokens, settings)


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Each value by its dotted path, so that messages can name differences."""
    if not isinstance(values, dict | list) or not values:
        return {prefix: values}
    found: dict[str, Any] = {}
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        found |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def _of_training(name: str, values: Mapping[str, Any], request: SweepRecipe) -> Start:
    for field in ("dense_tokens", "stage"):
        if getattr(request, field):
            raise RequestError(
                "the recipe is one training, not a pipeline.",
                field=field,
                value=getattr(request, field),
                fix="Name a pipeline that trains a dense model, upcycles it and continues training.",
            )
    own = {key: value for key, value in values.items() if key != "out"}
    return Start(name, None, own, None, request.out)


def _of_pipeline(name: str, values: Mapping[str, Any], request: SweepRecipe) -> tuple[str, tuple[Start, ...]]:
    recipe = parse(PipelineRecipe, dict(values))
    resolved(recipe)
    stage = _varied(recipe, request.stage)
    recipe = _needed(recipe, stage)
    if not request.dense_tokens:
        return stage, (_start(name, recipe, stage, request.out / "start", request.out),)
    dense = _dense_stage(recipe)
    step_tokens = _step_tokens(parse(TrainRecipe, resolved(recipe)[dense]))
    steps = sorted(_steps(budget, step_tokens, "dense_tokens") for budget in request.dense_tokens)
    _check_distinct(steps, step_tokens, "dense_tokens")
    starts = []
    for count in steps:
        tokens = count * step_tokens
        folder = request.out / f"dense-{tokens}"
        changed = _with_dense_steps(recipe, dense, count)
        title = f"{name}, {tokens:,} dense tokens"
        starts.append(_start(title, changed, stage, folder / "start", folder, tokens))
    return stage, tuple(starts)


def _start(
    name: str, recipe: PipelineRecipe, stage: str, start: Path, folder: Path, dense_tokens: int | None = None
) -> Start:
    placed = recipe.model_copy(update={"out": start})
    values = resolved(placed)[stage]
    own = {key: value for key, value in values.items() if key != "out"}
    return Start(name, placed, own, dense_tokens, folder)


def _varied(recipe: PipelineRecipe, asked: str | None) -> str:
    """The stage whose tokens vary."""
    trainings = [stage.name for stage in recipe.stages if stage.train is not None]
    if not trainings:
        raise RequestError("the pipeline trains nothing.", field="stage", value=asked)
    if asked is not None and asked not in trainings:
        raise RequestError(
            "is not a training of the pipeline.", field="stage", value=asked, fix=f"There are {', '.join(trainings)}."
        )
    return asked or trainings[-1]


def _needed(recipe: PipelineRecipe, stage: str) -> PipelineRecipe:
    """The pipeline up to this stage, without stages that it does not need."""
    names = [one.name for one in recipe.stages]
    kept = list(recipe.stages[: names.index(stage) + 1])
    kept[-1] = kept[-1].model_copy(update={"match_flops": None})  # the request sets its budgets
    for one in reversed(kept[:-1]):
        rest = [other for other in kept if other is not one]
        try:
            resolved(recipe.model_copy(update={"stages": tuple(rest)}))
        except RequestError:
            continue  # another stage refers to it
        kept = rest
    return recipe.model_copy(update={"stages": tuple(kept)})


def _dense_stage(recipe: PipelineRecipe) -> str:
    """The last training before the last conversion."""
    conversions = [at for at, stage in enumerate(recipe.stages) if stage.upcycle is not None]
    trainings = [stage.name for stage in recipe.stages[: max(conversions, default=0)] if stage.train is not None]
    if not trainings:
        raise RequestError(
            "the varied stage does not train a conversion of a model that another stage trains.",
            field="dense_tokens",
            value=[stage.name for stage in recipe.stages],
            fix="Name such a stage with `stage`, or omit dense tokens.",
        )
    return trainings[-1]


def _with_dense_steps(recipe: PipelineRecipe, dense: str, steps: int) -> PipelineRecipe:
    """The pipeline with a dense training of this number of steps, with its complete schedule."""
    rate = rate_of(parse(TrainRecipe, resolved(recipe)[dense]), (steps,))
    stages = tuple(
        stage.model_copy(update={"train": merge(stage.train or {}, {"trainer": rate.trainer(steps)})})
        if stage.name == dense
        else stage
        for stage in recipe.stages
    )
    return recipe.model_copy(update={"stages": stages})


# -- steps, schedule, text ---------------------------------------------------------------------------------------------


def _step_tokens(recipe: TrainRecipe) -> int:
    return blocks_a_step(recipe) * recipe.data.length


def _steps(tokens: int, step_tokens: int, field: str) -> int:
    steps = round(tokens / step_tokens)
    if steps < 1:
        raise RequestError(
            f"is less than one step of {step_tokens:,} tokens.",
            field=field,
            value=tokens,
            fix="Raise it, or use a smaller batch or shorter blocks.",
        )
    return steps


def _check_distinct(steps: Sequence[int], step_tokens: int, field: str) -> None:
    twice = next((count for count in steps if list(steps).count(count) > 1), None)
    if twice is not None:
        raise RequestError(
            f"two budgets have the same number of steps ({twice}): a step has {step_tokens:,} tokens.",
            field=field,
            value=twice * step_tokens,
            fix="Set them further apart, or use a smaller batch or shorter blocks.",
        )


def _check_held_out(starts: Sequence[Start]) -> None:
    """Check that all trainings hold out the same text, and that none reads it."""
    for start in starts:
        varied = start.values["data"]
        if any(source.get("streaming") for source in varied["sources"]) and not varied.get("validation"):
            raise RequestError(
                "longer trainings read more of a stream, and so hold out more of it.",
                field="data.validation",
                value=None,
                fix="Name the held-out text, so that it is the same for all budgets.",
            )
        for name, values in _trainings_before(start).items():
            if any(values["data"].get(key) != varied.get(key) for key in ("validation", "held_out")):
                raise RequestError(
                    f"stage {name} holds out other text than the varied stage, and may have been trained on it.",
                    field="data.validation",
                    value=values["data"].get("validation"),
                    fix="Give both the same data.validation or the same data.held_out.",
                )


def _trainings_before(start: Start) -> dict[str, dict[str, Any]]:
    if start.before is None:
        return {}
    values = resolved(start.before)
    return {stage.name: values[stage.name] for stage in start.before.stages if stage.train is not None}
