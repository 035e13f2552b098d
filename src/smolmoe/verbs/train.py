"""Train: training runs, pipelines, alignment, and the data and targets for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from smolmoe.core.progress import Progress
from smolmoe.recipe.align import AlignRecipe
from smolmoe.recipe.base import Recipe
from smolmoe.recipe.distill import CacheRecipe
from smolmoe.recipe.pairs import PairsRecipe
from smolmoe.recipe.pipeline import PipelineRecipe
from smolmoe.recipe.select import SelectRecipe
from smolmoe.recipe.teach import TeachRecipe
from smolmoe.recipe.train import TrainRecipe
from smolmoe.recipe.words import Continue, DryRun, Overwrite, Resume, ResumeTraining
from smolmoe.verbs.signature import takes

if TYPE_CHECKING:
    from smolmoe.alignment.pairs import PairsReport
    from smolmoe.alignment.run import AlignEstimate, AlignResult
    from smolmoe.pipeline.forecast import StageForecast
    from smolmoe.pipeline.run import PipelineResult
    from smolmoe.results.distillation import CacheForecast, CacheResult
    from smolmoe.results.teaching import TeachPlan, TeachReport
    from smolmoe.selection.results import Selection
    from smolmoe.training.estimate import Estimate
    from smolmoe.training.run import TrainResult


@takes(TrainRecipe, file=True, kind="train")
def train(
    recipe: TrainRecipe,
    *,
    resume: ResumeTraining = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    report: Progress | None = None,
) -> TrainResult | Estimate:
    """Train a model from scratch, or continue training one.

    Raises:
        SmolmoeError: a subclass with field, value and fix. After TrainingError and OutputError the last complete
            checkpoint can be resumed.
    """
    from smolmoe.training import run as training

    if dry_run:
        return replace(training.estimate(recipe), out=recipe.out)
    return training.train(recipe, resume=resume, overwrite=overwrite, report=report)


@dataclass(frozen=True)
class PipelineForecast:
    """The cost of a pipeline, stage by stage; `minutes` is its time budget."""

    out: Path
    stages: tuple[StageForecast, ...]
    minutes: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {"out": str(self.out), "stages": [stage.to_json() for stage in self.stages]}


@takes(PipelineRecipe, file=True, kind="pipeline")
def run(
    recipe: PipelineRecipe,
    *,
    start: Annotated[str | None, Field(description="first stage to run again, with all later ones")] = None,
    dry_run: DryRun = False,
    report: Progress | None = None,
) -> PipelineResult | PipelineForecast:
    """Run the stages of a pipeline; finished ones are skipped."""
    if dry_run:
        from smolmoe.pipeline.forecast import forecast

        minutes = None if recipe.budget is None else recipe.budget.minutes
        return PipelineForecast(recipe.out, tuple(forecast(recipe)), minutes)
    from smolmoe.pipeline.run import run as start_pipeline

    return start_pipeline(recipe, start=start, report=report)


@takes(AlignRecipe, file=True, kind="train")
def align(
    recipe: AlignRecipe,
    *,
    resume: Resume = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    report: Progress | None = None,
) -> AlignResult | AlignEstimate:
    """Align a model by the recipe's method: sft, dpo or cpo.

    Raises:
        SmolmoeError: a subclass with field, value and fix. After TrainingError and OutputError the last complete
            checkpoint can be resumed.
    """
    from smolmoe.alignment import run as alignment

    if dry_run:
        return replace(alignment.estimate(recipe), out=recipe.out)
    return alignment.align(recipe, resume=resume, overwrite=overwrite, report=report)


@takes(AlignRecipe, file=True, kind="train", fixed={"method": "sft"}, like=align)
def sft(recipe: AlignRecipe, **options: Any) -> AlignResult | AlignEstimate:
    """Fine-tune on answers (supervised fine-tuning)."""
    return align(recipe, **options)


@takes(AlignRecipe, file=True, kind="train", fixed={"method": "dpo"}, like=align)
def dpo(recipe: AlignRecipe, **options: Any) -> AlignResult | AlignEstimate:
    """Train on preference pairs against a reference model (DPO)."""
    return align(recipe, **options)


@takes(AlignRecipe, file=True, kind="train", fixed={"method": "cpo"}, like=align)
def cpo(recipe: AlignRecipe, **options: Any) -> AlignResult | AlignEstimate:
    """Train on preference pairs without a reference model (CPO)."""
    return align(recipe, **options)


@takes(PairsRecipe, "model")
def make_pairs(
    recipe: PairsRecipe, *, resume: Continue = False, overwrite: Overwrite = False, report: Progress | None = None
) -> PairsReport:
    """Sample preference pairs, ranked by distance to a reference.

    A model answers each prompt at two temperatures; the answer closer to a reference, by edit distance, is preferred.
    """
    from smolmoe.alignment.pairs_run import make_pairs as start

    return start(recipe, resume=resume, overwrite=overwrite, report=report)


@takes(CacheRecipe, "teacher", "data", "out")
def distill(
    recipe: CacheRecipe,
    *,
    resume: Continue = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    report: Progress | None = None,
) -> CacheResult | CacheForecast:
    """Write a teacher's probabilities for every token of a text.

    The cache is what section `distill` of a training recipe reads. Under `accelerate launch` the work is shared.
    """
    from smolmoe.distillation.run import cache_teacher, forecast_cache

    values = dict(recipe)
    device = values.pop("device")
    if dry_run:
        return forecast_cache(**values, report=report)
    return cache_teacher(**values, device=device, resume=resume, overwrite=overwrite, report=report)


class _Rows(Recipe):
    """The source of rows, as one argument."""

    data: str = Field(description="file or folder of rows, preset, or hub data set")
    text: str = Field("text", description="column with the text")


def sources(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a SelectRecipe, from `data` (a preset or a path) and `text`."""
    from smolmoe.data.presets import EMBEDDED, PRESETS

    rest = dict(values)
    data, text = rest.pop("data", None), rest.pop("text", "text")
    if data is None:
        return rest
    data = str(data)
    source = {"preset": data} if data in {*PRESETS, EMBEDDED} else {"path": data, "text": text}
    if str(rest.get("tokenizer", "")).isdecimal():
        rest["tokenizer"] = int(rest["tokenizer"])
    return {"sources": [source], **rest}


@takes(SelectRecipe, "data", extra=_Rows, prepare=sources)
def select(
    recipe: SelectRecipe,
    *,
    out: Annotated[str | Path, Field(description="output folder for rows.jsonl, indices.json and report.json")],
    overwrite: Overwrite = False,
    report: Progress | None = None,
) -> Selection:
    """Select training rows by score and group, without duplicates."""
    from smolmoe.selection.run import run_select

    return run_select(recipe, Path(out), overwrite=overwrite, report=report)


@takes(TeachRecipe)
def teach(
    recipe: TeachRecipe, *, resume: Continue = False, dry_run: DryRun = False, report: Progress | None = None
) -> TeachReport | TeachPlan:
    """Generate training rows with a model behind an HTTP endpoint."""
    from smolmoe.teacher.job import plan
    from smolmoe.teacher.job import teach as ask

    return plan(recipe) if dry_run else ask(recipe, resume=resume, report=report)
