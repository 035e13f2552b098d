"""A probe of an MoE's experts on the held-out text of the trainings."""

from __future__ import annotations

from pathlib import Path

from smolmoe.core.progress import Progress
from smolmoe.pipeline.stage import Row, Stage, Values
from smolmoe.recipe import ProbeRecipe


def run(recipe: ProbeRecipe, folder: Path, report: Progress) -> Values:
    from smolmoe.probing.run import run_probe

    return run_probe(recipe, report=report)


def row(result: Values, folder: Path) -> Row:
    peak = result["separation"]
    lines = [
        str(result["page"]),
        f"  separation  {peak['peak']:.3f} bits at layer {peak['layer']}, {peak['by_chance']:.3f} by chance",
        f"  accuracy    {result['accuracy']:.1%} of tokens, last third of the layers "
        f"(a linear probe: {result['ceiling']:.1%})",
        *(f"  {flag}" for flag in result["flags"]),
    ]
    return Row(found=f"domain accuracy {result['accuracy']:.1%}", text="\n".join(lines))


STAGE = Stage(
    ProbeRecipe,
    run,
    row,
    writes=lambda: (
        "text/held-out.jsonl",
        "text/training.jsonl",
        "probe/probe.json",
        "probe/index.html",
        "probe/*.png",
    ),
    leaves={"probe": ""},
    shares=lambda defaults: {key: value for key, value in defaults.items() if key == "data"},
    origin=lambda recipe: recipe.model,
)
