"""Pipelines: stages in order, each in a separate folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from smolmoe.recipe.base import Recipe

SOURCE = "source"  # its reference in stages


class BudgetRecipe(Recipe):
    """Time budget of all trainings of a pipeline."""

    minutes: float = Field(
        gt=0,
        description="minutes for all trainings; if they would take longer, each is shortened to the same share of its "
        "max_steps, after a short timing trial of the first one",
    )
    least: float = Field(0.0, ge=0, le=1, description="minimum share of the steps, however long they take")


class ReportRecipe(Recipe):
    """The effect of a conversion on the held-out loss, and the comparison of the final losses."""

    before: str | None = Field(None, description="training stage that ended at the conversion")
    after: dict[str, str] = Field(min_length=1, description="label -> training stage that continued from there")
    reference: str | None = Field(None, description="label that the others are compared with (default: none)")
    boundary: int = Field(
        0, ge=0, description="step of those stages to show in detail: 0 is the conversion, tie_groups the untying"
    )

    @model_validator(mode="after")
    def _reference_is_a_label(self) -> Self:
        if self.reference is not None and self.reference not in self.after:
            raise ValueError(f"{self.reference!r} is not a label of `after`")
        return self


class StageRecipe(Recipe):
    """One stage: exactly one of its kinds.

    In any value, `{source}` is the pipeline's `source`, and `{name}` is the model folder that stage `name` wrote, the
    file of the rows or pairs that it wrote, or the folder of its corpus. Of a training, `{name.run}` is the run folder,
    and `{name.blocks}` the number of blocks that it has read or skipped at its end. `{name.probe}` is the folder of a
    probe, and `{name.held_out}` the file of the rows that a selection kept out.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", description="name of the stage and its folder")
    import_model: dict[str, Any] | None = Field(None, description="a GGUF file as a plain checkpoint")
    train: dict[str, Any] | None = Field(None, description="a training recipe, without `out`")
    upcycle: dict[str, Any] | None = Field(None, description="options of `smolmoe upcycle`, without OUT")
    probe: dict[str, Any] | None = Field(
        None, description="probe of a model's experts on the held-out text, with a page"
    )
    select: dict[str, Any] | None = Field(None, description="rows to train on, chosen by a score")
    align: dict[str, Any] | None = Field(None, description="an alignment: its `method` and recipe, without `out`")
    pairs: dict[str, Any] | None = Field(None, description="preference pairs from a model's own answers")
    corpus: dict[str, Any] | None = Field(
        None, description="text in two files, training and held out: of sources, or of this Python installation"
    )
    doctor: dict[str, Any] | None = Field(None, description="diagnosis of an MoE; an error stops the pipeline")
    verify: dict[str, Any] | None = Field(
        None, description="verification of an MoE against the claim of its conversion; a failure stops the pipeline"
    )
    compare: dict[str, Any] | None = Field(None, description="models compared on the same held-out text")
    generate: dict[str, Any] | None = Field(None, description="answers to prompts, and the expert that leads on each")
    page: dict[str, Any] | None = Field(None, description="one page on what all stages before it wrote")
    report: ReportRecipe | None = Field(None, description="held-out losses across the conversion, plotted and compared")
    match_flops: str | None = Field(None, description="training stage with the same FLOPs: sets trainer.max_steps")

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> Self:
        if sum(getattr(self, kind) is not None for kind in kinds()) != 1:
            raise ValueError(f"a stage is exactly one of {', '.join(kinds())}")
        return self

    @property
    def kind(self) -> str:
        return next(kind for kind in kinds() if getattr(self, kind) is not None)


def kinds() -> tuple[str, ...]:
    """The kinds of stage: the sections of `StageRecipe`."""
    return tuple(name for name in StageRecipe.model_fields if name not in ("name", "match_flops"))


class PipelineRecipe(Recipe):
    """Stages in order. `defaults` apply to every training stage that does not set the same value."""

    defaults: dict[str, Any] = Field(default_factory=dict, description="values that all training stages share")
    budget: BudgetRecipe | None = Field(None, description="time budget of all trainings")
    source: str | None = Field(None, description="folder or hub id of the model to begin with, {source} in stages")
    stages: tuple[StageRecipe, ...] = Field(min_length=1, description="stages, in order")
    out: Path = Field(description="output folder of the pipeline")

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [stage.name for stage in self.stages]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two stages are called {twice!r}")
        if self.source is not None and SOURCE in names:
            raise ValueError(f"no stage can be called {SOURCE!r} together with the key of this name")
        return self
