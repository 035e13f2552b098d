"""Recipes as YAML: files of the user's, and those that the package ships, by name."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from smolmoe.errors import OutputError, RequestError

SHIPPED = Path(__file__).parents[1] / "recipes"


@dataclass(frozen=True)
class Shipped:
    """A recipe of the package: its name, `train` or `pipeline`, and the first comment of its file."""

    name: str
    kind: str
    about: str


def shipped() -> list[Shipped]:
    """The recipes of the package, by name."""
    found = []
    for path in sorted(SHIPPED.glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        lines = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
        kind = "pipeline" if "stages" in _extended(path.stem) else "train"
        found.append(Shipped(path.stem, kind, " ".join(lines[:1])))
    return found


def load(name: str, changes: Sequence[str] = ()) -> dict[str, Any]:
    """The values of a recipe.

    Args:
        name: a YAML file, or the name of a shipped recipe.
        changes: `section.key=value`, the value being YAML; `stages.NAME.` leads to a pipeline's stage.

    Raises:
        RequestError: no such recipe, not YAML, or a change that leads nowhere.
    """
    values = _extended(name)
    for change in changes:
        key, separator, text = change.partition("=")
        if not (separator and key.strip()):
            raise RequestError("must be section.key=value.", field="set", value=change)
        _put(values, key.strip().split("."), yaml.safe_load(text), change)
    values.setdefault("out", f"runs/{Path(name).stem}")
    return values


def _extended(name: str) -> dict[str, Any]:
    """The values of a recipe over those of the recipe that it extends."""
    values = _read(_find(name))
    base = values.pop("extends", None)
    return values if base is None else merge(_extended(base), values)


def copy(name: str, out: Path | None = None) -> Path:
    """Copy a shipped recipe to change it: into `out`, by default NAME.yaml in the current folder.

    Raises:
        RequestError: no such recipe.
        OutputError: the file is there.
    """
    source = _find(name)
    target = out if out is not None else Path(f"{source.stem}.yaml")
    if target.exists():
        raise OutputError("is there already.", field="out", value=str(target), fix="Name another file.")
    shutil.copyfile(source, target)
    return target


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over` in their place, section by section; None in `over` takes a key away.

    A list of named things is changed by a mapping from their names.
    """
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), list):
            merged[key] = [_renewed(item, value) for item in merged[key]]
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        elif value is None:
            merged.pop(key, None)
        else:
            merged[key] = value
    return merged


def _renewed(item: Any, over: Mapping[str, Any]) -> Any:
    changes = over.get(str(item.get("name"))) if isinstance(item, dict) else None
    return item if changes is None else merge(item, changes)


def _find(name: str) -> Path:
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if path.is_file():
            return path
        raise RequestError("there is no such file.", field="recipe", value=name)
    known = {path.stem: path for path in SHIPPED.glob("*.yaml")}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    raise RequestError(
        "no such recipe.",
        field="recipe",
        value=name,
        fix=f"Did you mean {near[0]!r}?" if near else "`smolmoe recipes` lists those there are.",
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"not YAML: {error}", field="recipe", value=str(path)) from error
    if not isinstance(values, dict):
        raise RequestError("a recipe is a mapping of keys to values.", field="recipe", value=str(path))
    return values


def _put(values: Any, keys: list[str], value: Any, change: str) -> None:
    """Set one value, making sections on the way; a list of named things is entered by name, others by number."""
    key, rest = keys[0], keys[1:]
    if isinstance(values, list):
        named = next((item for item in values if isinstance(item, dict) and item.get("name") == key), None)
        if named is None and key.isdigit() and int(key) < len(values):
            named = values[int(key)]
        if named is None or not rest:
            raise RequestError(f"there is no {key!r} in this list.", field="set", value=change)
        _put(named, rest, value, change)
    elif not isinstance(values, dict):
        raise RequestError(f"{key!r} lies in something that has no keys.", field="set", value=change)
    elif rest:
        _put(values.setdefault(key, {}), rest, value, change)
    else:
        values[key] = value
