"""Files written beside their place and renamed into it when whole, and deleted by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from smolmoe.errors import CheckpointError

TYPES: dict[type, str] = {dict: "an object", list: "a list", str: "a text", int: "a whole number", float: "a number"}


def write_json(path: Path, data: Any) -> None:
    """Write `data` as indented JSON."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def read_json(path: Path, kind: type = dict, *, field: str = "file", fix: str) -> Any:
    """What a JSON file that was written before holds.

    Args:
        kind: type that it must be of.
        fix: what to do where it is not.

    Raises:
        CheckpointError: it cannot be read, or is of another type.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        problem = f"{path.name} cannot be read ({error})."
        raise CheckpointError(problem, field=field, value=str(path), fix=fix) from error
    if not isinstance(found, kind):
        problem = f"{path.name} holds {type_name(found)} where {TYPES[kind]} belongs."
        raise CheckpointError(problem, field=field, value=str(path), fix=fix)
    return found


def type_name(value: object) -> str:
    """The type of a value of JSON, in words."""
    if value is None or isinstance(value, bool):
        return "nothing" if value is None else "true or false"
    return TYPES.get(type(value), type(value).__name__)


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
