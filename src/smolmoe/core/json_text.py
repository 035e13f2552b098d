"""JSON of unknown origin, read without trust."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smolmoe.errors import CheckpointError, DataError, SmolmoeError

TYPES: dict[type, str] = {dict: "an object", list: "a list", str: "a text", int: "a whole number", float: "a number"}
BAD_FILE = (OSError, ValueError)  # what `read_json` and `parse_json` raise


class DuplicateKeyError(ValueError):
    """A key is given twice in one object: which value is meant is ambiguous."""


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: not UTF-8, not JSON, nested too deeply, a key twice in one object, or half a surrogate pair.
    """
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str | bytes) -> Any:
    """As `read_json`, from text."""
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    try:
        value = json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if "\\ud" in text.lower():  # an escape of half a pair is JSON, but no file and no terminal takes it
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def json_line(row: Any) -> str:
    """A row as one line of JSON; half a surrogate pair, which UTF-8 cannot encode, makes it all escapes."""
    line = json.dumps(row, ensure_ascii=False, default=str)
    try:
        line.encode()
    except UnicodeEncodeError:
        line = json.dumps(row, default=str)
    return line + "\n"


def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs, for `json`; raises DuplicateKeyError."""
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DuplicateKeyError(f"the key {twice!r} is given twice in one object")
    return values


def read_object(
    path: Path,
    kind: type = dict,
    *,
    field: str | None = None,
    error: type[SmolmoeError] = CheckpointError,
    fix: str | None = None,
) -> Any:
    """The object, or list, that a JSON file holds.

    Args:
        field: of the error; default the file's name.

    Raises:
        error: it cannot be read, is not JSON (see `read_json`), or holds something else.
    """
    field = field or path.name
    try:
        found = read_json(path)
    except BAD_FILE as problem:
        raise error(
            f"{path.name} is not readable as JSON: {problem}.", field=field, value=str(path), fix=fix
        ) from problem
    if not isinstance(found, kind):
        wanted = "list" if kind is list else "object"
        wrong = f"{path.name} must hold a JSON {wanted}, not {type_name(found)}."
        raise error(wrong, field=field, value=str(path), fix=fix)
    return found


def type_name(value: object) -> str:
    """The type of a value of JSON, in words."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "true or false"
    return TYPES.get(type(value), type(value).__name__)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; an incomplete last line, after a kill, is left out.

    Raises:
        OSError: it cannot be read.
        DataError: a line that is not a row of a run, by its number.
    """
    rows = []
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise _bad_row(path, number, str(error)) from error
        if not isinstance(row, dict) or not isinstance(row.get("kind"), str):
            raise _bad_row(path, number, "there is no object with a kind")
        for key in ("step", "loss", "tokens", "seconds"):
            if not isinstance(row.get(key), int | float | None):
                raise _bad_row(path, number, f"its {key} is {row[key]!r}")
        rows.append(row)
    return rows


def _bad_row(path: Path, number: int, reason: str) -> DataError:
    return DataError(f"line {number} is not a row of a run: {reason}.", field=path.name, value=str(path))
