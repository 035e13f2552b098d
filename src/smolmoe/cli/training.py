"""train, run, recipes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smolmoe.cli.output import Json, count, print_json, print_rows, progress, quiet_libraries, size, table, tell

if TYPE_CHECKING:
    from smolmoe.pipeline import PipelineResult
    from smolmoe.train.estimate import Estimate
    from smolmoe.training import TrainResult

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
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps.  [default: the best there is]")] = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """One training run in one folder: a model from scratch, or one trained on."""
    quiet_libraries()
    from smolmoe.recipe import TrainRecipe, parse
    from smolmoe.recipe.files import load

    values = load(recipe, changes or ())
    if device is not None:
        values["device"] = device
    parsed = parse(TrainRecipe, values)
    if dry_run:
        from smolmoe.training import estimate

        costs = estimate(parsed)
        print_json(costs.to_json()) if as_json else _show_estimate(str(parsed.out), costs)
        return
    from smolmoe.training import train as start

    with tell(show=not as_json), progress(show=not as_json) as report:
        result = start(parsed, resume=resume, overwrite=overwrite, report=report)
    print_json(result.to_json()) if as_json else _show_trained(result)


def _show_estimate(out: str, costs: Estimate) -> None:
    model = costs.size
    print(f"would write {out}")
    print_rows(
        [
            ("parameters", f"{count(model.total)} total, {count(model.active)} active per token"),
            ("steps", f"{costs.steps:,}"),
            ("tokens", count(costs.tokens)),
            ("FLOPs", f"{costs.flops:.2e}"),
            ("memory", f"about {size(costs.memory_bytes)}"),
            ("time", f"about {_duration(costs.seconds)} on this machine"),
        ]
    )


def _show_trained(result: TrainResult) -> None:
    summary = result.summary
    held_out = summary["held_out"]
    print(f"{result.out}: {count(summary['parameters']['total'])} parameters, {summary['steps']:,} steps")
    by_domain = ", ".join(f"{domain} {loss:.4f}" for domain, loss in held_out["by_domain"].items())
    print_rows(
        [
            ("tokens", f"{count(summary['tokens'])} in {_duration(summary['train_seconds'])}"),
            ("held-out loss", f"{held_out['loss']:.4f} nats a token on {held_out['tokens']:,} ({by_domain})"),
            ("model", result.model),
        ]
    )
    for sample in summary["samples"]:
        print(f"\n--- {sample['prompt']}{sample['text']}")


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
    from smolmoe.pipeline import resolved
    from smolmoe.pipeline import run as start_pipeline
    from smolmoe.recipe import PipelineRecipe, parse
    from smolmoe.recipe.files import load

    recipe = parse(PipelineRecipe, load(pipeline, changes or ()))
    if dry_run:
        stages = resolved(recipe)
        print_json(stages) if as_json else _show_plan(recipe, stages)
        return
    with tell(show=not as_json), progress(show=not as_json) as report:
        result = start_pipeline(recipe, start=start, report=report)
    print_json(result.to_json()) if as_json else _show_pipeline(result)


def _show_plan(recipe: Any, stages: dict[str, dict[str, Any]]) -> None:
    from smolmoe.recipe import TrainRecipe, parse
    from smolmoe.training import estimate

    rows = []
    for stage in recipe.stages:
        said = ""
        values = stages[stage.name]
        if stage.kind == "train" and not str(values["model"].get("path", "")).startswith(str(recipe.out)):
            costs = estimate(parse(TrainRecipe, values))
            said = (
                f"{count(costs.size.total)} parameters, {count(costs.tokens)} tokens, about {_duration(costs.seconds)}"
            )
        elif stage.kind == "train":
            said = f"{values.get('trainer', {}).get('max_steps', '?')} steps from {values['model']['path']}"
        elif stage.kind == "upcycle":
            said = f"{values['source']}, {values.get('experts', 8)} experts, top-{values.get('top_k', 2)}"
        rows.append((stage.name, stage.kind, said))
    table(f"would write {recipe.out}", ("stage", "kind", "what"), rows)


def _show_pipeline(result: PipelineResult) -> None:
    rows = []
    for name, record in result.stages.items():
        found = record["result"]
        loss = f"{found['held_out']['loss']:.4f}" if "held_out" in found else ""
        rows.append(
            (
                name,
                record["asked"]["kind"],
                loss,
                f"{record['wall_seconds']:.0f} s",
                "" if record["done"] else "done before",
            )
        )
    table(str(result.out), ("stage", "kind", "held-out loss", "time", ""), rows)
    for record in result.stages.values():
        if "text" in record["result"]:
            print(record["result"]["text"])


@recipes_app.callback(invoke_without_command=True)
def recipes(context: typer.Context, as_json: Json = False) -> None:
    """List the recipes that come with smolmoe."""
    if context.invoked_subcommand is not None:
        return
    from smolmoe.recipe.files import shipped

    found = shipped()
    if as_json:
        print_json([{"name": r.name, "kind": r.kind, "about": r.about} for r in found])
        return
    table("Recipes", ("name", "for", "what"), [(r.name, _COMMANDS[r.kind], r.about) for r in found])
    print("`smolmoe recipes copy NAME` puts one here to change it; `--set section.key=value` changes a value.")


_COMMANDS = {"train": "smolmoe train", "pipeline": "smolmoe run"}


@recipes_app.command("copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of a shipped recipe.")],
    out: Annotated[Path | None, typer.Option(help="File to write.  [default: NAME.yaml]")] = None,
) -> None:
    """Copy a shipped recipe, to change it."""
    from smolmoe.recipe.files import copy

    print(copy(name, out))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"
