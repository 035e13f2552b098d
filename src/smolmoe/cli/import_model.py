"""import: a GGUF file, a multimodal model's text model or fp8 weights as a plain checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smolmoe.cli.command import Command, Given
from smolmoe.cli.output import print_rows
from smolmoe.core import units
from smolmoe.verbs import convert

if TYPE_CHECKING:
    from smolmoe.surgery.imports.run import Imported


def _counts(types: dict[str, int]) -> str:
    return ", ".join(f"{count} tensors of {name}" for name, count in sorted(types.items()))


def show_imported(result: Imported, given: Given) -> None:
    """What was written, and the effect on the stored types."""
    print(f"{result.out}: {result.architecture}")
    print_rows(
        [
            ("parameters", f"{units.parameters(result.parameters)} ({result.dtype}, {units.size(result.nbytes)})"),
            *([("dequantised", _counts(result.dequantised))] if result.dequantised else []),
            *([("copied", _counts(result.copied))] if result.copied else []),
        ]
    )
    print(f"\nDone in {units.duration(result.seconds)}.")


COMMAND = Command(convert.import_model, show_imported, doing="Writing the checkpoint")
