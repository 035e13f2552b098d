"""Pipelines: stages in order, each in a folder of its own; what is done is not done again."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolmoe.core.files import check_no_others, emptied, write_json
from smolmoe.core.json_text import BAD_FILE, read_json, read_object
from smolmoe.errors import OutputError, RequestError
from smolmoe.recipe import (
    AlignRecipe,
    PairsRecipe,
    PipelineRecipe,
    ProbeRecipe,
    Recipe,
    SelectRecipe,
    StageRecipe,
    TrainRecipe,
    UpcycleRecipe,
    parse,
)
from smolmoe.recipe.files import merge

logger = logging.getLogger(__name__)

RECORDS = "stages"
_REFERENCE = re.compile(r"\{([a-z0-9][a-z0-9_-]*)(?:\.(run|blocks|probe|held_out))?\}")
# What a stage of a kind is asked, and what it leaves in its folder for those after it.
_OPTIONS: dict[str, type[Recipe]] = {
    "train": TrainRecipe,
    "upcycle": UpcycleRecipe,
    "probe": ProbeRecipe,
    "select": SelectRecipe,
    "align": AlignRecipe,
    "pairs": PairsRecipe,
}
_LEFT = {"train": "model", "upcycle": "", "select": "rows.jsonl", "align": "model", "pairs": "pairs.jsonl"}
_SHOWN = {
    "probe": ("text/held-out.jsonl", "text/training.jsonl", "probe/probe.json", "probe/index.html", "probe/*.png"),
    "report": ("report.json", "growth.png"),
}
# Kinds of stages that a reference such as `{name.run}` may mean.
_MEANT = {
    None: tuple(_LEFT),
    "run": ("train",),
    "blocks": ("train",),
    "probe": ("probe",),
    "held_out": ("select",),
}
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

    A training that was interrupted goes on from its last whole checkpoint. Of several processes all train, and one does
    the rest.

    Args:
        start: do this stage and those after it again.
        report: called as the work goes on, with "stage: what".

    Raises:
        RequestError: a stage refers to one that does not come before it, or `start` is none.
        OutputError: the folder holds stages of another recipe, or something else.
    """
    return _Pipeline(recipe, report or (lambda stage, done, total: None)).run(start)


# -- what the stages are ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Known:
    """A stage that comes before the one being read."""

    kind: str
    values: dict[str, Any]
    steps_known: bool


def resolved(recipe: PipelineRecipe) -> dict[str, dict[str, Any]]:
    """Each stage's values, with defaults and references filled in, checked as far as they can be beforehand.

    Raises:
        RequestError: naming stage and key.
    """
    before: dict[str, _Known] = {}
    for stage in recipe.stages:
        with _naming(stage):
            values = _values(stage, recipe, before)
        before[stage.name] = _Known(stage.kind, values, stage.match_flops is None)
    return {name: stage.values for name, stage in before.items()}


def check_stages(recipe: PipelineRecipe, values: Mapping[str, dict[str, Any]], *, done: Collection[str] = ()) -> None:
    """Refuse what cannot be done on this machine, before the first stage: devices, packages, values of a trainer.

    Args:
        values: of each stage, as `resolved` gives them.
        done: stages that are not done again.

    Raises:
        RequestError: naming stage and key.
    """
    from smolmoe.core.devices import pick_device
    from smolmoe.training.arguments import check_trainer

    for stage in recipe.stages:
        if stage.report is not None or stage.name in done:
            continue
        parsed = parse(_OPTIONS[stage.kind], values[stage.name])
        with _naming(stage):
            pick_device(getattr(parsed, "device", None))
            if isinstance(parsed, TrainRecipe):
                check_trainer(parsed)
            elif isinstance(parsed, AlignRecipe):
                from smolmoe.alignment.arguments import check_trainer as check_alignment

                check_alignment(parsed)


@contextmanager
def _naming(stage: StageRecipe) -> Iterator[None]:
    """Say of a refusal within which stage it is about."""
    try:
        yield
    except RequestError as error:
        field = f"stages.{stage.name}.{stage.kind}.{error.field}"
        raise RequestError(error.message, field=field, value=error.value, fix=error.fix) from None


def _values(stage: StageRecipe, recipe: PipelineRecipe, before: Mapping[str, _Known]) -> dict[str, Any]:
    if stage.report is not None:
        for name in (stage.report.before, *stage.report.after.values()):
            if name is not None:
                _require(name, before, ("train",))
        return stage.report.model_dump()
    if stage.match_flops is not None:
        _require(stage.match_flops, before, ("train",))
    own: dict[str, Any] = getattr(stage, stage.kind)
    shared = recipe.defaults if stage.kind == "train" else {}
    if stage.kind == "probe":  # judged on what the trainings hold out
        shared = {key: value for key, value in recipe.defaults.items() if key == "data"}
    values = merge(shared, own)
    values = _fill(values, recipe.out, before)
    if stage.kind != "select":  # a choice of rows is the same wherever it is written
        values |= {"out": str(recipe.out / stage.name)}
    parsed = parse(_OPTIONS[stage.kind], values)
    if isinstance(parsed, TrainRecipe):  # what the stage passes over is a number once it has been checked
        values |= {"data": {**values["data"], "skip": parsed.data.skip}}
    return values


def _require(name: str, before: Mapping[str, _Known], wanted: tuple[str, ...]) -> _Known:
    if name not in before or before[name].kind not in wanted:
        there = [known for known, stage in before.items() if stage.kind in wanted]
        raise RequestError(
            f"no stage before this one is called {name!r} and is of kind {' or '.join(wanted)}.",
            field="reference",
            value=name,
            fix=f"There are {', '.join(there)}." if there else "There is none before it.",
        )
    return before[name]


def _fill(value: Any, out: Path, before: Mapping[str, _Known]) -> Any:
    """The value with `{stage}`, `{stage.run}` and `{stage.blocks}` replaced by folders and numbers."""
    if isinstance(value, dict):
        return {key: _fill(inner, out, before) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_fill(inner, out, before) for inner in value]
    if not isinstance(value, str):
        return value

    def found(match: re.Match[str]) -> str:
        name, what = match.groups()
        stage = _require(name, before, _MEANT[what])
        if what == "blocks":
            return str(_blocks(name, stage))
        left = {None: _LEFT.get(stage.kind, ""), "held_out": "held-out.jsonl"}.get(what, "")
        return str(out / name / left)

    return _REFERENCE.sub(found, value)


def _blocks(name: str, stage: _Known) -> int:
    """Blocks of its data that a training has read when it ends, with those that it passed over."""
    from smolmoe.training.estimate import blocks_a_step

    recipe = parse(TrainRecipe, stage.values)
    steps = int(recipe.trainer.get("max_steps", -1))
    if steps < 0 or not stage.steps_known:
        raise RequestError(
            "how many blocks it reads is not known beforehand.",
            field="reference",
            value=f"{name}.blocks",
            fix=f"Give {name} trainer.max_steps, or this stage a number.",
        )
    return recipe.data.skip + steps * blocks_a_step(recipe)


def _written(kind: str) -> tuple[str, ...]:
    """What a stage of a kind writes into its folder; everything else there is the user's."""
    if kind in ("train", "align"):
        from smolmoe.training.folder import ALL

        return ALL
    if kind == "upcycle":
        from smolmoe.core.model_folder import OF_A_MODEL

        return OF_A_MODEL
    if kind in ("select", "pairs"):
        from smolmoe.alignment import pairs
        from smolmoe.selection import results

        return results.WRITTEN if kind == "select" else pairs.WRITTEN
    return _SHOWN.get(kind, ())


def with_matched_steps(values: dict[str, Any], flops: float) -> dict[str, Any]:
    """The values of a training with as many steps as spend these FLOPs, to the nearest step."""
    from smolmoe.training.estimate import steps_for_flops

    steps = steps_for_flops(parse(TrainRecipe, values), flops)
    return values | {"trainer": {**values.get("trainer", {}), "max_steps": steps}}


# -- doing them ------------------------------------------------------------------------------------------------------


class _Pipeline:
    def __init__(self, recipe: PipelineRecipe, report: Report):
        self.recipe = recipe
        self.report = report
        self.out = recipe.out
        self.values = resolved(recipe)
        self.names = [stage.name for stage in recipe.stages]

    def run(self, start: str | None) -> PipelineResult:
        from smolmoe.training.distributed import held_by_main, join, on_main

        if start is not None and start not in self.names:
            raise RequestError("no such stage.", field="from", value=start, fix=f"Stages: {', '.join(self.names)}.")
        trainings = [parse(TrainRecipe, self.values[stage.name]) for stage in self.recipe.stages if stage.train]
        if trainings:
            join(trainings[0])
        kept = self.names if start is None else self.names[: self.names.index(start)]
        check_stages(self.recipe, self.values, done=[name for name in kept if self._record(name).is_file()])
        with held_by_main(self.out):
            on_main(lambda: self._open_folder(start))
            records = {}
            for number, stage in enumerate(self.recipe.stages, 1):
                records[stage.name] = self._stage(stage, f"{number}/{len(self.names)} {stage.name}")
            return PipelineResult(self.out, records)

    def _open_folder(self, start: str | None) -> None:
        """Before anything is run: what is done agrees with the recipe, and nothing of anybody else's is in the way."""
        kept = self.names if start is None else self.names[: self.names.index(start)]
        for stage in self.recipe.stages:
            if stage.name in kept:
                self._done(stage)
        if not (self.out / RECORDS).is_dir() and self.out.exists() and (self.out.is_file() or any(self.out.iterdir())):
            raise OutputError(
                f"there is something else than a pipeline's folders (no {RECORDS} in it).",
                field="out",
                value=str(self.out),
                fix="Name a new folder with `out=...`",
            )
        (self.out / RECORDS).mkdir(exist_ok=True)
        for stage in self.recipe.stages[len(kept) :]:
            written = _written(self._kind_there(stage))
            check_no_others(self.out / stage.name, *written, field="from", value=start)
        for name in self.names[len(kept) :]:
            self._record(name).unlink(missing_ok=True)
            emptied(self.out / name)

    def _record(self, name: str) -> Path:
        return self.out / RECORDS / f"{name}.json"

    def _kind_there(self, stage: StageRecipe) -> str:
        """The kind by which a stage was done, which the recipe may have changed since."""
        try:
            return str(read_json(self._record(stage.name))["asked"]["kind"])
        except (*BAD_FILE, KeyError, TypeError):  # it was not finished; a damaged record is what it is done again for
            return stage.kind

    def _done(self, stage: StageRecipe) -> dict[str, Any] | None:
        """The record of a stage that is done.

        Raises:
            OutputError: it was done with other values.
        """
        if not self._record(stage.name).is_file():
            return None
        again = f"Do the stage again with `start={stage.name!r}`."
        record: dict[str, Any] = read_object(self._record(stage.name), fix=again)
        asked = self._asked(stage)
        if record.get("asked") == asked:
            return record
        raise OutputError(
            f"the stage was done with other values ({_differences(record.get('asked'), asked)}).",
            field="stage",
            value=stage.name,
            fix=f"Do it again with `start={stage.name!r}`, or name another folder with `out=...`",
        )

    def _asked(self, stage: StageRecipe) -> dict[str, Any]:
        asked = {"kind": stage.kind, "values": self.values[stage.name], "match_flops": stage.match_flops}
        plain: dict[str, Any] = json.loads(json.dumps(asked, default=str))
        return plain

    def _stage(self, stage: StageRecipe, title: str) -> dict[str, Any]:
        from smolmoe.training.distributed import on_main

        record = on_main(lambda: self._done(stage))
        if record is not None:
            logger.info("%s: done before", title)
            return record | {"done": False}
        logger.info("%s: begins", title)
        begun = time.perf_counter()
        under: Report = lambda what, done, total: self.report(f"{title}: {what}", done, total)  # noqa: E731
        if stage.kind == "train":
            result = self._train(stage, under)
        else:
            result = on_main(lambda: getattr(self, f"_{stage.kind}")(stage, under))
        seconds = round(time.perf_counter() - begun, 2)
        record = {"asked": self._asked(stage), "result": result, "wall_seconds": seconds}
        on_main(lambda: write_json(self._record(stage.name), record))
        return record | {"done": True}

    def _train(self, stage: StageRecipe, report: Report) -> dict[str, Any]:
        from smolmoe.training.checkpoints import whole_checkpoints
        from smolmoe.training.distributed import on_main
        from smolmoe.training.run import train

        folder = self.out / stage.name
        values = self.values[stage.name]
        if stage.match_flops is not None:
            again = f"Do the stage again with `start={stage.match_flops!r}`."
            summary = read_object(self.out / stage.match_flops / "summary.json", fix=again)
            values = with_matched_steps(values, summary["flops"])
        resume = on_main(lambda: "latest" if folder.is_dir() and whole_checkpoints(folder) else None)
        return train(parse(TrainRecipe, values), resume=resume, overwrite=True, report=report).summary

    def _upcycle(self, stage: StageRecipe, report: Report) -> dict[str, Any]:
        from smolmoe.surgery.run import run_upcycle

        # What an interrupted run left is replaced; a finished stage does not come here again.
        recipe = parse(UpcycleRecipe, self.values[stage.name] | {"overwrite": True})
        return run_upcycle(recipe, report=report).to_json()

    def _probe(self, stage: StageRecipe, report: Report) -> dict[str, Any]:
        from smolmoe.probing.run import run_probe

        return run_probe(parse(ProbeRecipe, self.values[stage.name]), report=report)

    def _select(self, stage: StageRecipe, report: Report) -> dict[str, Any]:
        from smolmoe.selection.run import run_select

        recipe = parse(SelectRecipe, self.values[stage.name])
        return run_select(recipe, self.out / stage.name, overwrite=True, report=report).to_json()

    def _align(self, stage: StageRecipe, report: Report) -> dict[str, Any]:
        from smolmoe.alignment.run import align
        from smolmoe.training.checkpoints import whole_checkpoints

        folder = self.out / stage.name
        resume = "latest" if folder.is_dir() and whole_checkpoints(folder) else None
        recipe = parse(AlignRecipe, self.values[stage.name])
        return align(recipe, resume=resume, overwrite=True, report=report).summary

    def _pairs(self, stage: StageRecipe, report: Report) -> dict[str, Any]:
        from smolmoe.alignment.pairs_run import run_pairs

        return run_pairs(parse(PairsRecipe, self.values[stage.name]), report=report)

    def _report(self, stage: StageRecipe, report: Report) -> dict[str, Any]:
        from smolmoe.evaluation.held_out import DocumentLosses, paired_difference
        from smolmoe.reports.growth import write_report

        def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[float, float, float]:
            return paired_difference(DocumentLosses.from_json(a), DocumentLosses.from_json(b))

        report("Drawing", 0, 0)
        values = self.values[stage.name]
        return write_report(
            self.out / stage.name,
            None if values["before"] is None else self.out / values["before"],
            {label: self.out / name for label, name in values["after"].items()},
            reference=values["reference"],
            boundary=values["boundary"],
            compare=compare,
        )


def _differences(before: Any, now: Any, path: str = "") -> str:
    """The keys that differ, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        return ", ".join(_differences(before.get(key), now.get(key), f"{path}.{key}" if path else key) for key in keys)
    return f"{path.removeprefix('values.')}: {before} there, {now} here"
