"""What compare, sweep and bench wrote, read as plain data with the kind and schema checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolmoe.core.json_text import read_json
from smolmoe.core.provenance import check_schema
from smolmoe.errors import DataError


@dataclass(frozen=True)
class Comparison:
    """A `compare.json`: `values` are those of the file."""

    path: Path
    values: Mapping[str, Any]

    @property
    def verdict(self) -> Sequence[str]:
        """Who wins at what; the first sentence is about the loss."""
        return [str(sentence) for sentence in self.values.get("verdict") or ()]

    @property
    def checkpoints(self) -> list[tuple[str, str | None]]:
        """(path, hash) of all that were compared; None where the hash is not on record."""
        each = [found for model in self.values.get("models") or () for found in model.get("checkpoints") or ()]
        return [(str(found["path"]), found.get("sha256")) for found in each]

    @property
    def hashes(self) -> set[str | None]:
        """Of all that were compared."""
        return {sha for _, sha in self.checkpoints}


def read_comparison(file: Path) -> Comparison | None:
    """A comparison, None where the file is something else.

    Raises:
        CheckpointError: of another schema.
    """
    values = read_result(file, "compare")
    return None if values is None else Comparison(file, values)


def read_result(file: Path, kind: str) -> dict[str, Any] | None:
    """A result file of this kind, None where it is of another.

    Raises:
        DataError: no JSON.
        CheckpointError: of another schema.
    """
    try:
        values = read_json(file)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}.", field=file.name, value=str(file)) from error
    if not isinstance(values, dict) or values.get("kind") != kind:
        return None
    check_schema(values.get("schema_version"), file)
    return values
