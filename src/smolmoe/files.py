"""Files written beside their place and renamed into it when whole; JSON that others wrote; what is deleted by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smolmoe.errors import CheckpointError, SmolmoeError

BAD_FILE = (OSError, ValueError)  # what `read_json` and `parse_json` raise


def write_json(path: Path, data: Any) -> None:
    """Write `data` as indented JSON."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


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


def remove(folder: Path, *names: str) -> None:
    """Delete what is called so in a folder, where it is there; everything else stays.

    Args:
        names: of files and folders, with wildcards. A link is deleted, what it leads to is not.
    """
    for name in names:
        for path in sorted(folder.glob(name)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
