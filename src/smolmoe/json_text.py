"""JSON that others wrote, read without trust."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smolmoe.errors import CheckpointError, SmolmoeError

BAD_FILE = (OSError, ValueError)  # what `read_json` and `parse_json` raise


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: not UTF-8, not JSON, nested too deeply, a key twice in one object, or half a surrogate pair.
    """
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str | bytes) -> Any:
    """As `read_json`, of text."""
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if "\\ud" in text.lower():  # an escape of half a pair is JSON, but no file and no terminal takes it
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return values


def read_object(path: Path, *, error: type[SmolmoeError] = CheckpointError, fix: str | None = None) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        error: it cannot be read, is no JSON (see `read_json`), or holds something else than an object.
    """
    try:
        found = read_json(path)
    except BAD_FILE as problem:
        raise error(f"not readable as JSON: {problem}.", field=path.name, value=str(path), fix=fix) from problem
    if not isinstance(found, dict):
        kind = {list: "a list", type(None): "null"}.get(type(found), repr(found)[:40])
        raise error(f"must hold a JSON object, not {kind}.", field=path.name, value=str(path), fix=fix)
    return found
