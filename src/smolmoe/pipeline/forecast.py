"""The models and the cost of a pipeline, before it is run."""

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
    """The forecast of a stage.

    Attributes:
        name, kind: of the stage.
        values: its options, with references and matched steps filled in.
        origin: what it starts from: the name of a stage, a model or a text.
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
    """The stages in order, each derived from the configs of earlier ones: nothing is run, and no weight is read.

    Raises:
        SmolmoeError: as `smolmoe.pipeline.run.run`, as far as problems are visible beforehand.
    """
    place(recipe.out, "growing folder")
    check_stages(recipe, resolved(recipe))
    return foresee(recipe)


def foresee(recipe: PipelineRecipe) -> list[StageForecast]:
    """As `forecast`, for a pipeline that has been checked."""
    shown = resolved(recipe)
    found: dict[str, StageForecast] = {}
    with tempfile.TemporaryDirectory() as folder:
        # The same stages in a folder with models without weights in place of those that they will write.
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
