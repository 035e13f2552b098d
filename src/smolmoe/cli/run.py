"""run: the stages of a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from smolmoe.cli.command import Command, Given
from smolmoe.cli.output import print_rows, table
from smolmoe.core import units
from smolmoe.verbs import train

if TYPE_CHECKING:
    from smolmoe.pipeline.forecast import StageForecast
    from smolmoe.pipeline.run import PipelineResult


def _show_forecast(out: str, stages: Sequence[StageForecast]) -> None:
    rows = []
    for stage in stages:
        model = _parameters(stage)
        spent = ("",) * 5
        if (costs := stage.costs) is not None and costs.steps > 0:
            spent = (
                f"{costs.steps:,}",
                units.tokens(costs.tokens),
                units.flops(costs.flops),
                units.size(costs.memory_bytes),
                units.duration(costs.seconds),
            )
        rows.append((stage.name, stage.kind, _model_of(stage, out), model, *spent))
    columns = ("stage", "kind", "from", "parameters", "steps", "tokens", "FLOPs", "memory", "time")
    table(f"would write {out}", columns, rows)
    total = sum(stage.costs.seconds for stage in stages if stage.costs is not None)
    print(f"about {units.duration(total)} of training on this machine")
    for stage in stages:
        for warning in stage.warnings:
            print(f"{stage.name}: {warning}")


def _parameters(stage: StageForecast) -> str:
    if stage.total is None or stage.active is None:
        return ""
    return units.parameters(stage.total) + (
        f", {units.parameters(stage.active)} active" if stage.active < stage.total else ""
    )


def _model_of(stage: StageForecast, out: str) -> str:
    """What a stage begins from: a stage's name, a model's, or a text's."""
    values = stage.values
    if stage.kind == "report":
        return ", ".join(values["after"].values())
    if stage.kind == "select":
        return ", ".join(str(source.get("preset") or source.get("path")) for source in values["sources"])
    path = values["source"] if stage.kind == "upcycle" else values["model"]
    if isinstance(path, dict):
        path = path.get("path")
    return "new" if path is None else str(path).removeprefix(f"{out}/").removesuffix("/model")


def _show_pipeline(result: PipelineResult) -> None:
    rows = []
    for name, record in result.stages.items():
        found = record["result"]
        held_out = found["after"] if record["asked"]["kind"] == "align" else found.get("held_out")
        loss = f"{held_out['loss']:.4f}" if isinstance(held_out, dict) else ""
        rows.append(
            (
                name,
                record["asked"]["kind"],
                loss,
                units.duration(record["wall_seconds"]),
                "" if record["done"] else "done before",
            )
        )
    table(str(result.out), ("stage", "kind", "held-out loss", "time", ""), rows)
    for name, record in result.stages.items():
        if "text" in record["result"]:
            print(f"\n{result.out / name / 'growth.png'}\n{record['result']['text']}")
        if "page" in record["result"]:
            _show_headline(record["result"])


def _show_headline(found: dict[str, Any]) -> None:
    """What a probe found, and where its page is."""
    peak, accuracy, ceiling = found["separation"], found["accuracy"], found["ceiling"]
    print(f"\n{found['page']}")
    print_rows(
        [
            ("separation", f"{peak['peak']:.3f} bits at layer {peak['layer']}, {peak['by_chance']:.3f} by chance"),
            ("accuracy", f"{accuracy:.1%} of tokens, last third of the layers (a linear probe: {ceiling:.1%})"),
        ]
    )
    for flag in found["flags"]:
        print(f"  {flag}")


def show_run(found: PipelineResult | train.PipelineForecast, given: Given) -> None:
    """What it would cost, or what was done."""
    if isinstance(found, train.PipelineForecast):
        _show_forecast(str(found.out), found.stages)
    else:
        _show_pipeline(found)


COMMAND = Command(
    train.run,
    show_run,
    only=("recipe", "set", "out", "start", "dry_run"),
    names={"start": ("--from",)},
    group="Train",
)
