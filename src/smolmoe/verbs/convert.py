"""Convert: upcycle a dense model, and take out, merge or add experts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from smolmoe.recipe.upcycle import UpcycleRecipe
from smolmoe.verbs.signature import Device, DryRun, Overwrite, Report, takes

if TYPE_CHECKING:
    from smolmoe.surgery.experts.job import ExpertResult
    from smolmoe.surgery.inspection import Inspection
    from smolmoe.surgery.run import UpcycleResult

Model = Annotated[str | Path, Field(description="folder or hub id of an MoE")]
Out = Annotated[Path, Field(description="output folder")]
Name = str | int
Expert = Annotated[Sequence[Name] | Name, Field(description="name or index of an expert; several make a smaller MoE")]
Data = Annotated[
    str | Path | None,
    Field(description="text with domains: half chooses the experts, half measures the loss (.jsonl, .txt, .parquet)"),
]


def inspect(
    source: Annotated[str | Path, Field(description="folder or hub id of a dense model")],
    *,
    revision: Annotated[str | None, Field(description="hub revision: commit, branch or tag")] = None,
) -> Inspection:
    """Show a dense model's structure and its possible targets."""
    from smolmoe.surgery.inspection import inspect as run

    return run(str(source), revision=revision)


@takes(UpcycleRecipe, "source", "out")
def upcycle(recipe: UpcycleRecipe, *, dry_run: DryRun = False, report: Report | None = None) -> UpcycleResult:
    """Convert a dense model into an MoE and verify the files.

    Raises:
        SmolmoeError: a subclass with field, value and fix. Nothing is left half-written.
        VerificationError: the files do not match the claim; they are kept for inspection.
    """
    from smolmoe.surgery.run import run_upcycle

    return run_upcycle(recipe, dry_run=dry_run, report=report)


def extract(
    model: Model,
    out: Out,
    expert: Expert,
    *,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    report: Report | None = None,
) -> ExpertResult:
    """Extract one expert as a dense model, or several as an MoE."""
    from smolmoe.surgery.experts.run import extract as run

    experts = [expert] if isinstance(expert, str | int) else list(expert)
    return run(model, out, experts, device=device, overwrite=overwrite, dry_run=dry_run, report=report)


def prune(
    model: Model,
    out: Out,
    *,
    keep: Annotated[Sequence[Name] | None, Field(description="name or index of an expert to keep")] = None,
    experts: Annotated[int | None, Field(description="number of experts to keep: the most used on the data")] = None,
    data: Data = None,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    report: Report | None = None,
) -> ExpertResult:
    """Remove experts: keep those named, or those used most."""
    from smolmoe.surgery.experts.run import prune as run

    options = {"device": device, "overwrite": overwrite, "dry_run": dry_run, "report": report}
    return run(model, out, keep=keep, experts=experts, data=data, **options)  # type: ignore[arg-type]


def merge_experts(
    model: Model,
    out: Out,
    *,
    groups: Annotated[
        Sequence[Sequence[Name]] | None, Field(description="experts that are averaged into one: names or indices")
    ] = None,
    experts: Annotated[
        int | None, Field(description="number of experts to leave: similar ones are merged into the most used")
    ] = None,
    data: Data = None,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    report: Report | None = None,
) -> ExpertResult:
    """Average groups of experts, weighted by use if data is given."""
    from smolmoe.surgery.experts.run import merge_experts as run

    options = {"device": device, "overwrite": overwrite, "dry_run": dry_run, "report": report}
    return run(model, out, groups=groups, experts=experts, data=data, **options)  # type: ignore[arg-type]


def add_expert(
    model: Model,
    out: Out,
    *,
    copy_of: Annotated[Name | None, Field(description="name or index of the expert to copy (default: 0)")] = None,
    dense: Annotated[
        str | Path | None, Field(description="folder or hub id of a dense model whose FFNs become the expert")
    ] = None,
    name: Annotated[str | None, Field(description="name of the new expert (default: none)")] = None,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    report: Report | None = None,
) -> ExpertResult:
    """Add an expert: a copy of one, or a dense model's FFNs."""
    from smolmoe.surgery.experts.run import add_expert as run

    options = {"device": device, "overwrite": overwrite, "dry_run": dry_run, "report": report}
    return run(model, out, copy_of=copy_of, dense=dense, name=name, **options)  # type: ignore[arg-type]
