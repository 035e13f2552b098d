"""What a pipeline will make and cost, before any of it is there."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolmoe.core.files import place
from smolmoe.core.model_config import read_config
from smolmoe.recipe import AlignRecipe, PipelineRecipe, StageRecipe, TrainRecipe, UpcycleRecipe, parse

if TYPE_CHECKING:
    from smolmoe.training.estimate import Estimate


@dataclass(frozen=True)
class StageForecast:
    """What a stage will be.

    Attributes:
        name, kind: of the stage.
        values: what it will be run with, references and matched steps filled in.
        total, active: parameters of the model that it writes; None of a report.
        costs: of a training.
        warnings: what the user should know before it is run.
    """

    name: str
    kind: str
    values: dict[str, Any]
    total: int | None = None
    active: int | None = None
    costs: Estimate | None = None
    warnings: tuple[str, ...] = ()

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
    from smolmoe.pipeline.run import check_stages, resolved, with_matched_steps

    place(recipe.out, "growing folder")
    shown = resolved(recipe)
    check_stages(recipe, shown)
    with tempfile.TemporaryDirectory() as folder:
        # The same stages in a folder where the models that they will write are: without weights.
        hollow = resolved(recipe.model_copy(update={"out": Path(folder)}))
        found: dict[str, StageForecast] = {}
        for stage in recipe.stages:
            values = hollow[stage.name]
            if stage.match_flops is not None:
                costs = found[stage.match_flops].costs
                values = with_matched_steps(values, costs.flops if costs is not None else 0.0)
                shown[stage.name] |= {"trainer": values["trainer"]}
            found[stage.name] = StageForecast(stage.name, stage.kind, shown[stage.name], **_parts(stage, values))
    return list(found.values())


def _parts(stage: StageRecipe, values: dict[str, Any]) -> dict[str, Any]:
    if stage.train is not None:
        return _training(parse(TrainRecipe, values))
    if stage.align is not None:
        return _alignment(parse(AlignRecipe, values))
    return _conversion(parse(UpcycleRecipe, values)) if stage.upcycle is not None else {}


def _training(recipe: TrainRecipe) -> dict[str, Any]:
    from smolmoe.core.checkpoint import open_checkpoint
    from smolmoe.training.estimate import skeleton
    from smolmoe.training.models import model_folder
    from smolmoe.training.run import estimate

    folder = model_folder(recipe.model)
    if folder is not None:  # what is trained on keeps its shape
        config = read_config(folder, "model")
        shapes = {name: info.shape for name, info in open_checkpoint(folder).tensors.items()}
    else:
        model = skeleton(recipe)
        config = json.loads(model.config.to_json_string(use_diff=False)) | {"architectures": [type(model).__name__]}
        tied = set(getattr(model, "all_tied_weights_keys", None) or ())
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}
    _write(recipe.out / "model", config, shapes)
    costs = estimate(recipe)
    said = tuple(map(str, costs.findings))
    return {"total": costs.size.total, "active": costs.size.active, "costs": costs, "warnings": said}


def _alignment(recipe: AlignRecipe) -> dict[str, Any]:
    from smolmoe.alignment.job import router_findings
    from smolmoe.core.checkpoint import open_checkpoint
    from smolmoe.moe.loading import Skeleton
    from smolmoe.training.models import model_folder

    folder = model_folder(recipe.model)
    assert folder is not None  # the recipe has a path
    config = read_config(folder, "model")
    _write(recipe.out / "model", config, {name: info.shape for name, info in open_checkpoint(folder).tensors.items()})
    return {"warnings": tuple(map(str, router_findings(recipe, Skeleton(folder).model, 1)))}


def _conversion(recipe: UpcycleRecipe) -> dict[str, Any]:
    from smolmoe.core.checkpoint import open_checkpoint
    from smolmoe.surgery.plan import make_plan

    specialists = {name: open_checkpoint(path, field=f"expert {name}") for name, path in recipe.expert.items()}
    plan = make_plan(recipe, open_checkpoint(recipe.source, revision=recipe.revision), specialists)
    _write(recipe.out, plan.config, {tensor.name: tensor.shape for tensor in plan.tensors})
    said = tuple(f"warning: {warning}" for warning in plan.warnings)
    return {"total": plan.parameters.total, "active": plan.parameters.active, "warnings": said}


def _write(folder: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A checkpoint folder of float32 whose weights file is a header and a hole."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
