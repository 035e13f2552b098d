"""A result: what a command writes as JSON, and reads back as the same class.

The object of a file is a pydantic model of this class. Its parts are frozen dataclasses, which pydantic writes and
reads by their fields; a value that follows from them is a `computed_field`, which is written but not read.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from smolmoe.core.files import write_json
from smolmoe.core.json_text import BAD_FILE, read_json
from smolmoe.core.provenance import SCHEMA_VERSION, check_schema
from smolmoe.errors import DataError


class Result(BaseModel):
    """What a command measured.

    Attributes:
        schema_version: of the file; the same for all results.
        kind: the command; each class sets it.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    kind: str

    def to_json(self) -> dict[str, Any]:
        """The content of the file, as plain data."""
        return dict(as_json(self.model_dump(mode="json", by_alias=True)))

    def write(self, path: Path) -> None:
        """Write the file, completely or not at all.

        Raises:
            OutputError: the system refuses.
        """
        write_json(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file that `write` wrote.

        Raises:
            DataError: it cannot be read, or is not a result of this kind.
            CheckpointError: it has another schema.
        """
        return cls.from_json(read_plain(path, cls._make()), path)

    @classmethod
    def from_json(cls, values: Any, path: Path | None = None) -> Self:
        """The result from plain data, as `to_json` returns it.

        Args:
            path: of the file, for messages.

        Raises:
            DataError: it is not a result of this kind.
            CheckpointError: it has another schema.
        """
        path = path or Path(f"{cls.name()}.json")
        if not cls.is_one(values):
            raise DataError(
                f"is not the result of `smolmoe {cls.name()}`.", field=cls.name(), value=str(path), fix=cls._make()
            )
        check_schema(values.get("schema_version", SCHEMA_VERSION), path)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise DataError(
                f"is not what `smolmoe {cls.name()}` writes: {where}: {first['msg']}.", field=path.name, value=str(path)
            ) from error

    @classmethod
    def is_one(cls, values: Any) -> bool:
        """Whether plain data are declared to be of this kind."""
        return isinstance(values, dict) and values.get("kind") == cls.name() and "schema_version" in values

    @classmethod
    def _make(cls) -> str:
        """The command that makes one."""
        return f"Run `smolmoe {cls.name()}` first."

    @classmethod
    def name(cls) -> str:
        """The kind of the class."""
        return str(cls.model_fields["kind"].default)


def read_plain(path: Path, fix: str | None = None) -> Any:
    """The plain data of a JSON file; raises DataError."""
    try:
        return read_json(path)
    except BAD_FILE as error:
        raise DataError(f"cannot be read: {error}.", field=path.name, value=str(path), fix=fix) from error


def as_json(value: Any) -> Any:
    """Plain data in which NaN and infinity, which JSON has no form for, are text."""
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
