"""The trainings of a sweep, each in a separate folder: finished ones are kept, interrupted ones resume."""

from __future__ import annotations

import logging
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolmoe.core.files import write_json
from smolmoe.core.json_text import read_object, read_rows
from smolmoe.core.progress import Progress, silent, within
from smolmoe.core.run_folder import begin_folder
from smolmoe.pipeline.run import run
from smolmoe.recipe import TrainRecipe, parse
from smolmoe.scaling.plan import Plan, Start
from smolmoe.training.arguments import check_trainer
from smolmoe.training.checkpoints import find_checkpoint, step_of, whole_checkpoints
from smolmoe.training.distributed import join, on_main
from smolmoe.training.folder import BEST, HELD_OUT, SUMMARY
from smolmoe.training.run import train

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
SETTINGS = "settings.json"
MADE = ("start", "dense-*", "seed-*", "sweep.json", "sweep.png")  # in the folder of a sweep


@dataclass(frozen=True)
class Trained:
    """The finished training of a budget.

    Attributes:
        steps, seed: of it.
        folder: of its run.
        summary: its `summary.json`.
        documents: its `held_out.json`.
    """

    steps: int
    seed: int
    folder: Path
    summary: dict[str, Any]
    documents: dict[str, Any]


class Runs:
    """All trainings of a plan, in order."""

    def __init__(self, plan: Plan, report: Progress):
        self.plan = plan
        self.report = report

    def join(self) -> None:
        """Join other processes, if any, and check the trainer's values for all of them."""
        plan = self.plan
        join(parse(TrainRecipe, {**plan.starts[0].values, "out": str(plan.request.out)}))
        check_trainer(plan.recipe(plan.starts[0], plan.request.seeds[0], plan.steps[0], plan.request.out))

    def open(self, *, overwrite: bool) -> None:
        """Create the sweep's folder, or resume in it.

        Raises:
            OutputError: it holds a sweep of another recipe, or something else.
        """
        out, settings = self.plan.request.out, self.plan.settings
        on_main(lambda: begin_folder(out, settings, what="a sweep", record=SETTINGS, made=MADE, overwrite=overwrite))

    def curve(self, start: Start) -> list[Trained]:
        """The trainings of one start, seed by seed."""
        if start.before is not None:
            run(start.before, report=within(self.report, "start: "))
        return [self._point(start, seed, steps) for seed in self.plan.request.seeds for steps in self.plan.steps]

    def _point(self, start: Start, seed: int, steps: int) -> Trained:
        folder = self._folder(start, seed, "tokens", steps)
        title = f"{start.name}, seed {seed}, {steps * self.plan.step_tokens:,} tokens"
        if on_main(lambda: is_done(folder)):
            logger.info("%s: already done", title)
        elif self.plan.rate.kind == "trunk":
            branches_at = self.plan.rate.branches_at(steps)
            self._train(start, seed, steps, folder, title, origin=self._trunk(start, seed, branches_at, title))
        else:
            origin = self._before(start, seed, "tokens", steps) if self.plan.rate.kind == "constant" else None
            self._train(start, seed, steps, folder, title, origin=origin)
        if self.plan.rate.kind != "constant":  # no other run starts from here
            on_main(lambda: _keep_the_last_alone(folder))
        return on_main(lambda: _read(steps, seed, folder))

    def _trunk(self, start: Start, seed: int, steps: int, title: str) -> Path:
        """The checkpoint of the shared training at this step, trained from the nearest earlier one."""
        folder = self._folder(start, seed, "trunk", steps)
        if not on_main(lambda: is_done(folder) and self._ends(folder, steps)):
            origin = self._before(start, seed, "trunk", steps)
            self._train(start, seed, steps, folder, f"{title}, the shared part", origin=origin, whole=False)
        return on_main(lambda: find_checkpoint(folder, "latest"))

    def _train(
        self, start: Start, seed: int, steps: int, folder: Path, title: str, *, origin: Path | None, whole: bool = True
    ) -> None:
        own = on_main(lambda: folder.is_dir() and bool(whole_checkpoints(folder)))
        resume = "latest" if own else None if origin is None else str(origin)
        recipe = self.plan.recipe(start, seed, steps, folder, whole=whole)
        logger.info("%s: %s", title, "resumes" if own else "starts")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Both num_training_steps and num_stable_steps")  # the latter is intended
            train(recipe, resume=resume, overwrite=True, report=within(self.report, f"{title}: "))

    def _folder(self, start: Start, seed: int, kind: str, steps: int) -> Path:
        return start.folder / f"seed-{seed}" / f"{kind}-{steps * self.plan.step_tokens}"

    def _before(self, start: Start, seed: int, kind: str, steps: int) -> Path | None:
        """The last checkpoint of the longest finished run of this kind that is shorter."""

        def found() -> Path | None:
            parent = self._folder(start, seed, kind, steps).parent
            lengths = [int(path.name.removeprefix(f"{kind}-")) for path in parent.glob(f"{kind}-*")]
            for tokens in sorted(lengths, reverse=True):
                count = tokens // self.plan.step_tokens
                folder = self._folder(start, seed, kind, count)
                if count < steps and is_done(folder) and self._ends(folder, count):
                    return find_checkpoint(folder, "latest")
            return None

        return on_main(found)

    def _ends(self, folder: Path, steps: int) -> bool:
        """Whether the run can be continued from its last step."""
        kept = whole_checkpoints(folder)
        return bool(kept) and step_of(kept[-1]) == steps


def is_done(folder: Path) -> bool:
    """Whether a run is finished: it writes its summary last."""
    return (folder / SUMMARY).is_file() and (folder / HELD_OUT).is_file()


def points_done(plan: Plan) -> int:
    """The number of a plan's budgets that are trained already."""
    runs = Runs(plan, silent)
    return sum(
        is_done(runs._folder(start, seed, "tokens", steps))
        for start in plan.starts
        for seed in plan.request.seeds
        for steps in plan.steps
    )


def start_loss(start: Start) -> float | None:
    """The held-out loss before the first step, averaged over the seeds' runs that measured it."""
    found = []
    for seed in sorted(start.folder.glob("seed-*")):
        rows = (row for metrics in sorted(seed.glob(f"*/{METRICS}")) for row in read_rows(metrics))
        first = next((row for row in rows if row["kind"] == "held_out" and row["step"] == 0), None)
        if first is not None:
            found.append(float(first["loss"]))
    return sum(found) / len(found) if found else None


def _keep_the_last_alone(folder: Path) -> None:
    """Delete a run's checkpoints and its best model, and the name of the latter in the summary."""
    for name in ("checkpoints", BEST):
        shutil.rmtree(folder / name, ignore_errors=True)
    summary = read_object(folder / SUMMARY)
    if (summary.get("best") or {}).get("model") is not None:
        write_json(folder / SUMMARY, {**summary, "best": {**summary["best"], "model": None}})


def _read(steps: int, seed: int, folder: Path) -> Trained:
    again = "Delete the folder to repeat its training."
    summary, documents = (read_object(folder / name, fix=again) for name in (SUMMARY, HELD_OUT))
    return Trained(steps, seed, folder, summary, documents)
