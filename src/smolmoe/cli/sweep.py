"""sweep: a training at several token budgets, and the scaling law."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from smolmoe.cli.command import Command, Given
from smolmoe.cli.output import print_rows, print_tables, table
from smolmoe.core import units
from smolmoe.recipe.resolve import values_of
from smolmoe.verbs import measure

if TYPE_CHECKING:
    from smolmoe.results.scaling_law import Sweep
    from smolmoe.scaling.forecast import SweepForecast


def _show_forecast(found: SweepForecast, given: Given) -> None:
    columns = ("what", "runs", "steps", "tokens", "FLOPs", "time")
    rows = [
        (
            cost.name,
            cost.runs,
            f"{cost.steps:,}",
            units.tokens(cost.tokens),
            units.flops(cost.flops),
            units.duration(cost.seconds),
        )
        for cost in found.costs
    ]
    table(f"would write {found.out}", columns, rows)
    print(found.schedule)
    shared = "" if found.flops_unshared <= found.flops else f" ({units.flops(found.flops_unshared)} without sharing)"
    print_rows(
        [
            ("budgets", ", ".join(f"{tokens:,}" for tokens in found.budgets)),
            ("FLOPs", f"{units.flops(found.flops)}{shared}"),
            ("time", f"about {units.duration(found.seconds)} of training on this machine"),
            ("done", f"{found.done} of {found.points} points"),
        ]
    )


def _show(result: Sweep, given: Given) -> None:
    from smolmoe.reports.sweep_view import sweep_tables, sweep_words

    out = Path(given.get("out") or f"{values_of(given['recipe'], {}, changes=given.get('set', ()))['out']}-sweep")
    print(f"{out}: {result.recipe}{f', stage {result.stage}' if result.stage else ''}")
    held_out = result.held_out
    print(f"{result.schedule.text}\nHeld out: {held_out.tokens:,} tokens of {held_out.documents:,} documents.")
    print_tables(sweep_tables(result))
    for sentence in sweep_words(result):
        print(f"  {sentence}")
    print(f"{out / 'sweep.png'}")


COMMAND = Command(measure.sweep, _show, _show_forecast)
