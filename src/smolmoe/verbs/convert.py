"""Convert: inspect a dense model and upcycle it. `smolmoe.surgery.experts.run` has the commands for experts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from smolmoe.core.progress import Progress
from smolmoe.recipe.upcycle import Dtype, UpcycleRecipe
from smolmoe.recipe.words import DryRun, Out, Overwrite
from smolmoe.verbs.signature import said, takes

if TYPE_CHECKING:
    from smolmoe.surgery.imports.run import Imported
    from smolmoe.surgery.inspection import Inspection
    from smolmoe.surgery.run import UpcycleResult


def inspect(
    source: Annotated[str | Path, Field(description="folder or hub id of a dense model")],
    *,
    revision: Annotated[str | None, Field(description="hub revision: commit, branch or tag")] = None,
) -> Inspection:
    """Show a dense model's structure and its possible targets."""
    from smolmoe.surgery.inspection import inspect as run

    return run(str(source), revision=revision)


def import_model(
    source: Annotated[str | Path, Field(description="GGUF file, or folder or hub id of a model")],
    out: Out,
    *,
    text_model: Annotated[bool, said(UpcycleRecipe, "text_model")] = False,
    dequantise: Annotated[bool, said(UpcycleRecipe, "dequantise")] = False,
    dtype: Annotated[
        Dtype | None, Field(description="dtype of dequantised weights (default: the config's; GGUF: without rounding)")
    ] = None,
    tokenizer: Annotated[
        str | None, Field(description="folder or hub id of a tokenizer that replaces a GGUF file's")
    ] = None,
    revision: Annotated[str | None, Field(description="hub revision: commit, branch or tag")] = None,
    overwrite: Overwrite = False,
) -> Imported:
    """Write a GGUF, multimodal or fp8 model as a plain checkpoint.

    Raises:
        SmolmoeError: a subclass with field, value and fix. Nothing incomplete is left.
    """
    from smolmoe.surgery.imports.run import import_model as run

    return run(
        source,
        out,
        text_model=text_model,
        dequantise=dequantise,
        dtype=dtype,
        tokenizer=tokenizer,
        revision=revision,
        overwrite=overwrite,
    )


@takes(UpcycleRecipe, "source", "out")
def upcycle(recipe: UpcycleRecipe, *, dry_run: DryRun = False, report: Progress | None = None) -> UpcycleResult:
    """Convert a dense model into an MoE and verify the files.

    Raises:
        SmolmoeError: a subclass with field, value and fix. No incomplete output is left.
        VerificationError: the files do not match the claim; they are kept for inspection.
    """
    from smolmoe.surgery.run import run_upcycle

    return run_upcycle(recipe, dry_run=dry_run, report=report)
