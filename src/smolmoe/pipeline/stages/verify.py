"""An MoE's files measured against the dense model: a failed check stops the pipeline."""

from __future__ import annotations

from pathlib import Path

from smolmoe.core.progress import Progress
from smolmoe.pipeline.stage import Row, Stage, Values
from smolmoe.recipe.verification import VerifyRecipe


def run(recipe: VerifyRecipe, folder: Path, report: Progress) -> Values:
    """The measurements.

    Raises:
        VerificationError: the files do not satisfy the claim.
    """
    from smolmoe.results.verification import failure
    from smolmoe.verification.verify import verify

    found = verify(**recipe.model_dump(), report=report)
    if not found.passed:
        raise failure(found.checks, Path(recipe.moe))
    return found.to_json()


def row(result: Values, folder: Path) -> Row:
    return Row(found=verdict(result))


def verdict(verification: Values | None) -> str:
    """E.g. "verified (exact), max |Δlogit| 3.8e-06"; empty if nothing was measured."""
    if verification is None:
        return ""
    said = "verified" if verification["passed"] else "NOT verified"
    said += ", quick" if verification.get("mode") == "quick" else ""
    return f"{said} ({verification['claim']['kind']}), max |Δlogit| {verification['logits']['max_abs']:.1e}"


STAGE = Stage(VerifyRecipe, run, row, origin=lambda recipe: recipe.moe)
