"""run: the stages of a pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smolmoe.cli.command import Command, Given
from smolmoe.cli.output import table
from smolmoe.core import units
from smolmoe.verbs import train

if TYPE_CHECKING:
    from smolmoe.pipeline.run import PipelineResult


def _show_forecast(found: train.PipelineForecast, given: Given) -> None:
    from smolmoe.pipeline.summary import forecast_table

    table(f"would write {found.out}", *forecast_table(list(found.stages)))
    total = sum(stage.costs.seconds for stage in found.stages if stage.costs is not None)
    print(f"about {units.duration(total)} of training on this machine")
    if found.minutes is not None:
        print(f"The time budget shortens the trainings if they would take longer than {found.minutes:g} min.")
    for stage in found.stages:
        for warning in stage.warnings:
            print(f"{stage.name}: {warning}")


def show_run(result: PipelineResult, given: Given) -> None:
    """A row for each stage, and the stages' findings."""
    from smolmoe.pipeline import summary

    table(str(result.out), *summary.table(result.out, result.stages))
    print(result.text())


COMMAND = Command(
    train.run,
    show_run,
    _show_forecast,
    only=("recipe", "set", "out", "start", "dry_run"),
    names={"start": ("--from",)},
)
