"""What a pipeline will make and cost, before any of it is there."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolmoe.core.files import place
from smolmoe.pipeline.resolve import check_stages, resolved, section, with_matched_steps
from smolmoe.pipeline.stage import Foreseen, Values
from smolmoe.pipeline.stages import STAGES
from smolmoe.recipe import PipelineRecipe


@dataclass(frozen=True, kw_only=True)
class StageForecast(Foreseen):
    """What a stage will be.

    Attributes:
        name, kind: of the stage.
        values: what it will be run with, references and matched steps filled in.
        origin: what it begins from: a stage's name, a model's, or a text's.
    """

    name: str
    kind: str
    values: Values
    origin: str

    def to_json(self) -> dict[str, Any]:
        costs = None if self.costs is None else self.costs.to_json()
        parameters = None if self.total is None else {"total": self.total, "active": self.active}
        return {
            "name": self.name,
            "kind": self.kind,
            "parameters": parameters,
            "costs": costs,
            "values": self.values,
        } | ({"warnings": list(self.warnings)} if self.warnings else {})


def forecast(recipe: PipelineRecipe) -> list[StageForecast]:
    """The stages in order, each known from the configs of those before it: nothing is run, no weight is read.

    Raises:
        SmolmoeError: as `smolmoe.pipeline.run.run`, for what can be seen beforehand.
    """
    place(recipe.out, "growing folder")
    check_stages(recipe, resolved(recipe))
    return foresee(recipe)


def foresee(recipe: PipelineRecipe) -> list[StageForecast]:
    """As `forecast`, of a pipeline that has been checked."""
    shown = resolved(recipe)
    found: dict[str, StageForecast] = {}
    with tempfile.TemporaryDirectory() as folder:
        # The same stages in a folder where the models that they will write are: without weights.
        hollow = resolved(recipe.model_copy(update={"out": Path(folder)}))
        for stage in recipe.stages:
            name, values = stage.name, hollow[stage.name]
            if stage.match_flops is not None:
                costs = found[stage.match_flops].costs
                values = with_matched_steps(values, costs.flops if costs is not None else 0.0)
                shown[name] |= {"trainer": values["trainer"]}
            kind, parsed = STAGES[stage.kind], section(stage, values)
            origin = kind.origin(parsed).removeprefix(f"{folder}/").removesuffix("/model")
            seen = vars(kind.dry_run(parsed, Path(folder) / name))
            found[name] = StageForecast(name=name, kind=stage.kind, values=shown[name], origin=origin, **seen)
    return list(found.values())
