"""An MoE examined before it is trained: an error stops the pipeline."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from smolmoe.core.progress import Progress
from smolmoe.errors import VerificationError
from smolmoe.pipeline.stage import Row, Stage, Values
from smolmoe.recipe.verification import DoctorRecipe


def run(recipe: DoctorRecipe, folder: Path, report: Progress) -> Values:
    """The diagnosis.

    Raises:
        VerificationError: it has an error.
    """
    from smolmoe.verification.doctor import doctor

    report("Examining the MoE", 0, 0)
    found = doctor(**recipe.model_dump())
    if found.worst == "error":
        worst = found.findings[0]
        raise VerificationError(worst.message, field="moe", value=recipe.moe, fix=worst.remedy)
    return found.to_json()


def row(result: Values, folder: Path) -> Row:
    counts = Counter(finding["severity"] for finding in result["findings"])
    said = ", ".join(f"{count} {severity}" for severity, count in counts.items())
    text = "\n".join(f"{finding['severity']}: {finding['message']}" for finding in result["findings"])
    return Row(found=said or "no findings", text=text)


STAGE = Stage(DoctorRecipe, run, row, origin=lambda recipe: recipe.moe)
