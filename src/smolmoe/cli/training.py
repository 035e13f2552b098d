"""train, run, recipes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smolmoe.cli.output import BestDevice, Json, print_json, print_rows, progress, quiet_libraries, table, tell
from smolmoe.core import units

if TYPE_CHECKING:
    from smolmoe.pipeline.forecast import StageForecast
    from smolmoe.pipeline.run import PipelineResult
    from smolmoe.recipe import PipelineRecipe
    from smolmoe.training.estimate import Estimate
    from smolmoe.training.run import TrainResult

recipes_app = typer.Typer(help="The recipes that come with smolmoe.", add_completion=False, rich_markup_mode=None)

Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a value of the recipe; repeat it."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what it would cost; train nothing.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start over in a folder that has a run.")]


def add_to(app: typer.Typer) -> None:
    app.command()(train)
    app.command()(run)
    app.add_typer(recipes_app, name="recipes")


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="YAML file, or the name of a shipped recipe.")],
    changes: Changes = None,
    resume: Annotated[
        str | None, typer.Option(metavar="latest|best|PATH", help="Go on from a checkpoint of the run.")
    ] = None,
    device: BestDevice = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """One training run in one folder: a model from scratch, or one trained on."""
    quiet_libraries()
    from smolmoe.recipe import TrainRecipe, parse
    from smolmoe.recipe.files import load

    values = load(recipe, changes or (), kind="train")
    if device is not None:
        values["device"] = device
    parsed = parse(TrainRecipe, values)
    if dry_run:
        from smolmoe.training.run import estimate

        costs = estimate(parsed)
        print_json(costs.to_json()) if as_json else _show_estimate(str(parsed.out), costs)
        return
    from smolmoe.training.run import train as start

    with tell(show=not as_json), progress(show=not as_json) as report:
        result = start(parsed, resume=resume, overwrite=overwrite, report=report)
    print_json(result.to_json()) if as_json else _show_trained(result)


def _show_estimate(out: str, costs: Estimate) -> None:
    model = costs.size
    print(f"would write {out}")
    rows = [("parameters", f"{units.parameters(model.total)} total, {units.parameters(model.active)} active per token")]
    if costs.steps > 0:
        rows += [
            ("steps", f"{costs.steps:,}"),
            ("tokens", units.tokens(costs.tokens)),
            ("FLOPs", units.flops(costs.flops)),
        ]
    else:
        rows.append(("steps", "known once the text is read (trainer.max_steps is not given)"))
    rows.append(("memory", f"about {units.size(costs.memory_bytes)}"))
    if costs.steps > 0:
        rows.append(("time", f"about {units.duration(costs.seconds)} on this machine"))
    print_rows(rows)
    for found in costs.findings:
        print(found)


def _show_trained(result: TrainResult) -> None:
    from smolmoe.verification.findings import Finding

    summary = result.summary
    held_out, best = summary["held_out"], summary["best"]
    print(f"{result.out}: {units.parameters(summary['parameters']['total'])} parameters, {summary['steps']:,} steps")
    by_domain = ", ".join(f"{domain} {loss:.4f}" for domain, loss in held_out["by_domain"].items())
    print_rows(
        [
            ("tokens", f"{units.tokens(summary['tokens'])} in {units.duration(summary['train_seconds'])}"),
            ("device", "{device} ({name})".format(**summary["device"])),
            ("held-out loss", f"{held_out['loss']:.4f} nats a token on {held_out['tokens']:,} ({by_domain})"),
            *_change_rows(summary),
            ("model", result.model),
            (
                "best",
                f"{result.best or 'no checkpoint of it'} (step {best['step']:,}, held-out loss {best['loss']:.4f})",
            ),
        ]
    )
    for found in summary.get("findings", ()):
        print(Finding(**found))
    for sample in summary["samples"]:
        print(f"\n--- {sample['prompt']}{sample['text']}")


def _change_rows(summary: dict[str, Any]) -> list[tuple[str, object]]:
    """What became of the held-out loss, where it was measured on the same documents before."""
    if "change" not in summary:
        return []
    from smolmoe.evaluation.held_out import Change

    change = Change.from_json(summary["change"])
    return [("before", f"{change.before:.4f} nats a token"), ("change", change)]


def run(
    pipeline: Annotated[str, typer.Argument(metavar="PIPELINE", help="YAML file, or the name of a shipped pipeline.")],
    start: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Do this stage and later ones again.")
    ] = None,
    changes: Changes = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Stages in order, finished ones skipped, each in its own folder."""
    quiet_libraries()
    from smolmoe.recipe import PipelineRecipe, parse
    from smolmoe.recipe.files import load

    recipe = parse(PipelineRecipe, load(pipeline, changes or (), kind="pipeline"))
    if dry_run:
        from smolmoe.pipeline.forecast import forecast

        stages = forecast(recipe)
        data = {"out": str(recipe.out), "stages": [stage.to_json() for stage in stages]}
        print_json(data) if as_json else _show_forecast(recipe, stages)
        return
    from smolmoe.pipeline.run import run as start_pipeline

    with tell(show=not as_json), progress(show=not as_json) as report:
        result = start_pipeline(recipe, start=start, report=report)
    print_json(result.to_json()) if as_json else show_pipeline(result)


def _show_forecast(recipe: PipelineRecipe, stages: list[StageForecast]) -> None:
    from smolmoe.pipeline.summary import forecast_table

    table(f"would write {recipe.out}", *forecast_table(stages))
    total = sum(stage.costs.seconds for stage in stages if stage.costs is not None)
    print(f"about {units.duration(total)} of training on this machine")
    if recipe.budget is not None:
        print(
            f"The time budget shortens the trainings where they would take longer than {recipe.budget.minutes:g} min."
        )
    for stage in stages:
        for warning in stage.warnings:
            print(f"{stage.name}: {warning}")


def show_pipeline(result: PipelineResult) -> None:
    """A row for each stage, and what the stages found."""
    from smolmoe.pipeline import summary

    table(str(result.out), *summary.table(result.out, result.stages))
    print(result.text())


@recipes_app.callback(invoke_without_command=True)
def recipes(context: typer.Context, as_json: Json = False) -> None:
    """List the recipes that come with smolmoe."""
    if context.invoked_subcommand is not None:
        return
    from smolmoe.recipe.files import COMMANDS, shipped

    found = shipped()
    if as_json:
        print_json([{"name": r.name, "kind": r.kind, "about": r.about} for r in found])
        return
    table("Recipes", ("name", "for", "what"), [(r.name, COMMANDS[r.kind], r.about) for r in found])
    print("`smolmoe recipes copy NAME` puts one here to change it; `--set section.key=value` changes a value.")


@recipes_app.command("copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of a shipped recipe.")],
    out: Annotated[Path | None, typer.Option(help="File to write.  [default: NAME.yaml]")] = None,
) -> None:
    """Copy a shipped recipe, to change it."""
    from smolmoe.recipe.files import copy

    print(copy(name, out))
