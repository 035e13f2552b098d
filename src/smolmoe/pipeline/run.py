"""Pipelines: stages in order, each in a separate folder; a finished stage is not run again."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolmoe.core.allocator import release_memory
from smolmoe.core.contents import check_no_others, emptied
from smolmoe.core.files import write_json
from smolmoe.core.json_text import BAD_FILE, read_json, read_object
from smolmoe.core.progress import Progress, silent, within
from smolmoe.core.run_folder import RECORDS, differences, foreign
from smolmoe.errors import OutputError, RequestError
from smolmoe.pipeline import budget
from smolmoe.pipeline.resolve import check_stages, resolved, section, with_matched_steps
from smolmoe.pipeline.stage import Values
from smolmoe.pipeline.stages import STAGES
from smolmoe.recipe import PipelineRecipe, StageRecipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PipelineResult:
    """The result of a pipeline.

    Attributes:
        out: its folder.
        stages: each stage's record, in order; `done` is True if it was run now, False if before.
    """

    out: Path
    stages: dict[str, dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        return {"out": str(self.out), "stages": self.stages}

    def text(self) -> str:
        """The findings of the stages, for a terminal."""
        from smolmoe.pipeline.summary import findings

        return findings(self.out, self.stages)


def run(recipe: PipelineRecipe, *, start: str | None = None, report: Progress | None = None) -> PipelineResult:
    """Run the stages of a pipeline that are not done yet.

    An interrupted training resumes from its last complete checkpoint. With several processes all train, and one does
    the other stages.

    Args:
        start: run this stage and those after it again.
        report: progress, as "stage: step".

    Raises:
        RequestError: a stage refers to one that is not before it, or `start` is not a stage.
        OutputError: the folder holds stages of another recipe, or something else.
    """
    return _Pipeline(recipe, report or silent).run(start)


class _Pipeline:
    def __init__(self, recipe: PipelineRecipe, report: Progress):
        self.report = report
        self.out = recipe.out
        self.names = [stage.name for stage in recipe.stages]
        self.trainings = [stage.name for stage in recipe.stages if stage.train is not None]
        self.is_timed = recipe.budget is None or not self.trainings
        self._take(recipe, 1.0)

    def _take(self, recipe: PipelineRecipe, share: float) -> None:
        """Use this recipe, with a share of its trainings' steps."""
        self.recipe = recipe if self.is_timed and share == 1 else budget.shortened(recipe, share)
        self.values = resolved(self.recipe)

    def run(self, start: str | None) -> PipelineResult:
        from smolmoe.training.distributed import held_by_main, join, on_main

        if start is not None and start not in self.names:
            raise RequestError("no such stage.", field="from", value=start, fix=f"Stages: {', '.join(self.names)}.")
        kept = self.names if start is None else self.names[: self.names.index(start)]
        stages = self.recipe.stages
        if self.trainings:
            first = next(stage for stage in stages if stage.train is not None)
            join(section(first, self.values[first.name]))
        check_stages(self.recipe, self.values, done=[name for name in kept if self._record(name).is_file()])
        with held_by_main(self.out):
            self._know_share(kept)
            on_main(lambda: self._open_folder(kept))
            titles = {name: f"{number}/{len(self.names)} {name}" for number, name in enumerate(self.names, 1)}
            return PipelineResult(self.out, {name: self._stage(name, titles[name]) for name in self.names})

    # -- existing stages ----------------------------------------------------------------------------------------

    def _know_share(self, kept: list[str]) -> None:
        """Use the share of an earlier run whose trainings are kept."""
        from smolmoe.training.distributed import on_main

        asked = self.recipe.budget
        if asked is None or self.is_timed or self.trainings[0] not in kept:
            return
        share = on_main(lambda: budget.known_share(self.out, asked))
        if share is not None:
            self._take(self.recipe, share)
            self.is_timed = True

    def _open_folder(self, kept: list[str]) -> None:
        """Before any stage is run: finished stages agree with the recipe, and no other files are in the way."""
        for stage in self.recipe.stages:
            if stage.name in kept:
                self._done(stage)
        if not (self.out / RECORDS).is_dir() and self.out.exists() and (self.out.is_file() or any(self.out.iterdir())):
            raise foreign(self.out, "a pipeline's folders", RECORDS, fix="Name a new folder with `out=...`")
        (self.out / RECORDS).mkdir(exist_ok=True)
        for stage in self.recipe.stages[len(kept) :]:
            written = STAGES[self._kind_there(stage)].writes()
            check_no_others(self.out / stage.name, *written, field="from", value=self.names[len(kept)])
        if not self.is_timed:
            (self.out / budget.FILE).unlink(missing_ok=True)
        for name in self.names[len(kept) :]:
            self._record(name).unlink(missing_ok=True)
            emptied(self.out / name)

    def _record(self, name: str) -> Path:
        return self.out / RECORDS / f"{name}.json"

    def _kind_there(self, stage: StageRecipe) -> str:
        """The kind of a stage when it was done, which the recipe may have changed since."""
        try:
            return str(read_json(self._record(stage.name))["asked"]["kind"])
        except (*BAD_FILE, KeyError, TypeError):  # not finished; a stage with a damaged record is done again
            return stage.kind

    def _done(self, stage: StageRecipe) -> dict[str, Any] | None:
        """The record of a finished stage, or None.

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
            f"the stage was done with other values ({differences(record.get('asked'), asked, within='values.')}).",
            field="stage",
            value=stage.name,
            fix=f"Do it again with `start={stage.name!r}`, or name another folder with `out=...`",
        )

    def _asked(self, stage: StageRecipe) -> dict[str, Any]:
        asked = {"kind": stage.kind, "values": self.values[stage.name], "match_flops": stage.match_flops}
        plain: dict[str, Any] = json.loads(json.dumps(asked, default=str))
        return plain

    # -- running ---------------------------------------------------------------------------------------------

    def _stage(self, name: str, title: str) -> dict[str, Any]:
        from smolmoe.training.distributed import on_main

        record = on_main(lambda: self._done(self._named(name)))
        if record is not None:
            logger.info("%s: already done", title)
            return record | {"done": False}
        logger.info("%s: starts", title)

        report = within(self.report, f"{title}: ")
        if name in self.trainings and not self.is_timed:
            self._time(name, report)
        stage, begun, worked = self._named(name), time.perf_counter(), time.process_time()
        kind, parsed = STAGES[stage.kind], section(stage, self._matched(stage))
        folder = self.out / name
        result = (
            kind.run(parsed, folder, report) if kind.collective else on_main(lambda: kind.run(parsed, folder, report))
        )
        release_memory()  # else the next stage's model would stand next to this one's
        spent = {
            "wall_seconds": round(time.perf_counter() - begun, 2),
            "cpu_seconds": round(time.process_time() - worked, 2),
        }
        record = {"asked": self._asked(stage), "result": result, **spent}
        on_main(lambda: write_json(self._record(name), record))
        return record | {"done": True}

    def _named(self, name: str) -> StageRecipe:
        return self.recipe.stages[self.names.index(name)]

    def _time(self, name: str, report: Progress) -> None:
        """Before the first training: find the share of the steps that fits into the budget."""
        if name != self.trainings[0]:
            raise OutputError(
                "the trainings before it were run without a budget.",
                field="budget",
                value=name,
                fix=f"Run all of them again with `start={self.trainings[0]!r}`.",
            )
        share = budget.find_share(self.recipe, name, self.values[name], report)
        self._take(self.recipe, share)
        self.is_timed = True

    def _matched(self, stage: StageRecipe) -> Values:
        """A stage's values, with the steps that spend another's FLOPs where that is asked."""
        values = self.values[stage.name]
        if stage.match_flops is None:
            return values
        again = f"Do the stage again with `start={stage.match_flops!r}`."
        summary = read_object(self.out / stage.match_flops / "summary.json", fix=again)
        return with_matched_steps(values, summary["flops"])
