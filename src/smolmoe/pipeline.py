"""Pipelines: stages in order, each in a folder of its own; what is done is not done again."""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolmoe.errors import OutputError, RequestError
from smolmoe.files import write_json
from smolmoe.recipe import PipelineRecipe, StageRecipe, TrainRecipe, UpcycleRecipe, parse
from smolmoe.recipe.files import merge

logger = logging.getLogger(__name__)

RECORDS = "stages"
_REFERENCE = re.compile(r"\{([a-z0-9][a-z0-9_-]*)(\.run)?\}")
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PipelineResult:
    """What a pipeline wrote.

    Attributes:
        out: its folder.
        stages: each stage's record, in order; `done` tells whether it was made now (True) or found (False).
    """

    out: Path
    stages: dict[str, dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        return {"out": str(self.out), "stages": self.stages}


def run(recipe: PipelineRecipe, *, start: str | None = None, report: Report | None = None) -> PipelineResult:
    """Run the stages of a pipeline that are not done yet.

    A training that was interrupted goes on from its last whole checkpoint.

    Args:
        start: do this stage and those after it again.
        report: called as the work goes on, with "stage: what".

    Raises:
        RequestError: a stage refers to one that does not come before it, or `start` is none.
        OutputError: the folder holds stages of another recipe.
    """
    return _Pipeline(recipe, report or (lambda stage, done, total: None)).run(start)


def resolved(recipe: PipelineRecipe) -> dict[str, dict[str, Any]]:
    """Each stage's values, with defaults and references filled in, checked as far as they can be beforehand.

    Raises:
        RequestError: naming stage and key.
    """
    kinds: dict[str, str] = {}
    found = {}
    for stage in recipe.stages:
        found[stage.name] = _values(stage, recipe, kinds)
        kinds[stage.name] = stage.kind
    return found


def _values(stage: StageRecipe, recipe: PipelineRecipe, kinds: Mapping[str, str]) -> dict[str, Any]:
    try:
        if stage.report is not None:
            for name in (stage.report.before, *stage.report.after.values()):
                if name is not None:
                    _require(name, kinds, ("train",))
            return stage.report.model_dump()
        if stage.match_flops is not None:
            _require(stage.match_flops, kinds, ("train",))
        own = stage.train if stage.train is not None else stage.upcycle
        values = merge(recipe.defaults, own or {}) if stage.kind == "train" else dict(own or {})
        values = _fill(values, recipe.out, kinds) | {"out": str(recipe.out / stage.name)}
        parse(TrainRecipe if stage.kind == "train" else UpcycleRecipe, values)
        return values
    except RequestError as error:
        raise RequestError(
            error.message, field=f"stages.{stage.name}.{error.field}", value=error.value, fix=error.fix
        ) from None


def _require(name: str, kinds: Mapping[str, str], wanted: tuple[str, ...]) -> None:
    if kinds.get(name) not in wanted:
        raise RequestError(
            f"no stage before this one is called {name!r} and is of kind {' or '.join(wanted)}.",
            field="reference",
            value=name,
            fix=f"Stages before it: {', '.join(kinds) or 'none'}.",
        )


def _fill(value: Any, out: Path, kinds: Mapping[str, str]) -> Any:
    """The value with `{stage}` and `{stage.run}` replaced by folders."""
    if isinstance(value, dict):
        return {key: _fill(inner, out, kinds) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_fill(inner, out, kinds) for inner in value]
    if not isinstance(value, str):
        return value

    def folder(match: re.Match[str]) -> str:
        name, of_run = match.group(1), match.group(2) is not None
        _require(name, kinds, ("train",) if of_run else ("train", "upcycle"))
        return str(out / name / "model" if kinds[name] == "train" and not of_run else out / name)

    return _REFERENCE.sub(folder, value)


class _Pipeline:
    def __init__(self, recipe: PipelineRecipe, report: Report):
        self.recipe = recipe
        self.report = report
        self.out = recipe.out
        self.values = resolved(recipe)

    def run(self, start: str | None) -> PipelineResult:
        names = [stage.name for stage in self.recipe.stages]
        if start is not None and start not in names:
            raise RequestError("no such stage.", field="from", value=start, fix=f"Stages: {', '.join(names)}.")
        (self.out / RECORDS).mkdir(parents=True, exist_ok=True)
        if start is not None:
            self._forget(names[names.index(start) :])
        records = {}
        for number, stage in enumerate(self.recipe.stages, 1):
            records[stage.name] = self._stage(stage, f"{number}/{len(names)} {stage.name}")
        return PipelineResult(self.out, records)

    def _forget(self, names: list[str]) -> None:
        for name in names:
            (self.out / RECORDS / f"{name}.json").unlink(missing_ok=True)
            shutil.rmtree(self.out / name, ignore_errors=True)

    def _stage(self, stage: StageRecipe, title: str) -> dict[str, Any]:
        values = self._matched(stage)
        asked = {"kind": stage.kind, "values": json.loads(json.dumps(values))}
        file = self.out / RECORDS / f"{stage.name}.json"
        if file.is_file():
            record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if record["asked"] != asked:
                raise OutputError(
                    "the stage was done with other values.",
                    field="stage",
                    value=stage.name,
                    fix=f"Do it again with --from {stage.name}, or name another folder with --set out=...",
                )
            logger.info("%s: done before", title)
            return record | {"done": False}
        logger.info("%s: begins", title)
        begun = time.perf_counter()
        result = getattr(self, f"_{stage.kind}")(stage, values, title)
        record = {"asked": asked, "result": result, "wall_seconds": round(time.perf_counter() - begun, 2)}
        write_json(file, record)
        return record | {"done": True}

    def _matched(self, stage: StageRecipe) -> dict[str, Any]:
        """The stage's values, its steps such that it spends the FLOPs of another stage."""
        values = self.values[stage.name]
        if stage.match_flops is None:
            return values
        from smolmoe.training import steps_for_flops

        flops = json.loads((self.out / stage.match_flops / "summary.json").read_text(encoding="utf-8"))["flops"]
        steps = steps_for_flops(parse(TrainRecipe, values), flops)
        return values | {"trainer": {**values.get("trainer", {}), "max_steps": steps}}

    def _under(self, title: str) -> Report:
        return lambda stage, done, total: self.report(f"{title}: {stage}", done, total)

    def _train(self, stage: StageRecipe, values: dict[str, Any], title: str) -> dict[str, Any]:
        from smolmoe.train.checkpoints import whole_checkpoints
        from smolmoe.training import train

        folder = self.out / stage.name
        resume = "latest" if folder.is_dir() and whole_checkpoints(folder) else None
        result = train(parse(TrainRecipe, values), resume=resume, overwrite=True, report=self._under(title))
        return result.summary

    def _upcycle(self, stage: StageRecipe, values: dict[str, Any], title: str) -> dict[str, Any]:
        from smolmoe.upcycling import run_upcycle

        # What an interrupted run left is replaced; a finished stage does not come here again.
        recipe = parse(UpcycleRecipe, values | {"overwrite": True})
        return run_upcycle(recipe, report=self._under(title)).to_json()

    def _report(self, stage: StageRecipe, values: dict[str, Any], title: str) -> dict[str, Any]:
        from smolmoe.evaluate.held_out import DocumentLosses, paired_difference
        from smolmoe.report.growth import write_report

        def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[float, float, float]:
            return paired_difference(DocumentLosses.from_json(a), DocumentLosses.from_json(b))

        self._under(title)("Drawing", 0, 0)
        folders = {label: self.out / name for label, name in values["after"].items()}
        before = self.out / values["before"] if values["before"] else None
        return write_report(self.out / stage.name, before, folders, values["reference"], compare)
