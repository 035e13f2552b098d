"""bench: what a model costs to run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from smolmoe.cli.command import Command
from smolmoe.cli.output import print_rows, print_tables
from smolmoe.verbs import measure

if TYPE_CHECKING:
    from smolmoe.results.bench import BenchResult


def show_bench(result: BenchResult) -> None:
    """The machine and the settings, the models' sizes and FLOPs, and their speed."""
    from smolmoe.reports.bench_view import bench_machine, bench_tables

    settings = result.settings
    asked = f"{settings.prompt_tokens} tokens in, {settings.new_tokens} out, {settings.rounds} rounds"
    print_rows([("machine", bench_machine(result)), ("settings", asked)])
    names = _short([model.name for model in result.models])
    models = tuple(replace(model, name=name) for model, name in zip(result.models, names, strict=True))
    print_tables(bench_tables(result.model_copy(update={"models": models})))


def _short(names: list[str]) -> list[str]:
    """The last part of each path, or the whole path if two have the same last part."""
    short = [Path(name).name or name for name in names]
    return short if len(set(short)) == len(short) else names


COMMAND = Command(measure.bench, lambda result, given: show_bench(result))
