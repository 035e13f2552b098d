"""A result: what a command writes as JSON, and reads back as the same class.

A file's top is a pydantic model of this class. Its parts are frozen dataclasses: pydantic writes and reads these by
their fields, and a value that follows from them is a `computed_field`, which is written and not read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from smolmoe.core.files import write_json
from smolmoe.core.json_text import BAD_FILE, read_json
from smolmoe.core.provenance import SCHEMA_VERSION, check_schema
from smolmoe.errors import DataError


class Result(BaseModel):
    """What a command found.

    Attributes:
        schema_version: of the file; one for all results.
        kind: the command; each class gives it a value.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    schema_version: int = SCHEMA_VERSION
    kind: str

    def to_json(self) -> dict[str, Any]:
        """What the file holds, as plain data."""
        return self.model_dump(mode="json", by_alias=True)

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            OutputError: the system refuses.
        """
        write_json(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> Self:
        """What `write` wrote.

        Raises:
            DataError: it cannot be read, or is not a result of this kind.
            CheckpointError: it is of another schema.
        """
        return cls.from_json(_read(path, cls._make()), path)

    @classmethod
    def from_json(cls, values: Any, path: Path | None = None) -> Self:
        """What `to_json` gave.

        Args:
            path: where it is from, for messages.

        Raises:
            DataError: it is not a result of this kind.
            CheckpointError: it is of another schema.
        """
        path = path or Path(f"{cls.name()}.json")
        if not cls.is_one(values):
            raise DataError(
                f"is not the result of `smolmoe {cls.name()}`.",
                field=cls.name(),
                value=str(path),
                fix=cls._make(),
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
        """Whether plain data say of themselves that they are of this kind."""
        return isinstance(values, dict) and values.get("kind") == cls.name() and "schema_version" in values

    @classmethod
    def _make(cls) -> str:
        """How to come by one."""
        return f"Run `smolmoe {cls.name()}` first."

    @classmethod
    def name(cls) -> str:
        """The kind of the class."""
        return str(cls.model_fields["kind"].default)


def _read(path: Path, fix: str | None = None) -> Any:
    try:
        return read_json(path)
    except BAD_FILE as error:
        raise DataError(f"cannot be read: {error}.", field=path.name, value=str(path), fix=fix) from error


def read_any(path: Path, kinds: tuple[type[Result], ...]) -> Result | None:
    """The result that a file holds, None where it is of none of these kinds.

    Raises:
        DataError, CheckpointError: as `Result.read`.
    """
    values = _read(path)
    return next((kind.from_json(values, path) for kind in kinds if kind.is_one(values)), None)
