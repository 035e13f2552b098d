"""Recipes as YAML: the user's files, and the shipped recipes by name."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from smolmoe.core.files import place, replacing
from smolmoe.errors import OutputError, RequestError

SHIPPED = Path(__file__).with_name("shipped")
COMMANDS = {"train": "smolmoe train", "pipeline": "smolmoe run"}  # kind of recipe -> the command that runs it


@dataclass(frozen=True)
class Shipped:
    """A recipe of the package: its name, `train` or `pipeline`, and the first comment of its file."""

    name: str
    kind: str
    about: str


def recipes() -> tuple[Shipped, ...]:
    """List the shipped recipes, which can be copied and edited."""
    found = []
    for path in sorted(SHIPPED.glob("*.yaml"), key=lambda path: path.stem):
        text = path.read_text(encoding="utf-8")
        lines = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
        found.append(Shipped(path.stem, kind_of(_extended(path)), " ".join(lines[:1])))
    return tuple(found)


def kind_of(values: Mapping[str, Any]) -> str:
    """`pipeline` if there are stages, else `train`."""
    return "pipeline" if "stages" in values else "train"


def load(name: str, changes: Sequence[str] = (), *, kind: str | None = None) -> dict[str, Any]:
    """The values of a recipe.

    Args:
        name: a YAML file, or the name of a shipped recipe.
        changes: `section.key=value`, the value being YAML; `stages.NAME.` leads to a pipeline's stage.
        kind: `train` or `pipeline`, if only one of them is accepted.

    Raises:
        RequestError: no such recipe, the wrong kind, not YAML, or a change to a key that does not exist.
    """
    values = _extended(_find(name))
    found = kind_of(values)
    if kind is not None and found != kind:
        raise RequestError(
            "is a pipeline, not one training." if found == "pipeline" else "is one training, not a pipeline.",
            field="recipe",
            value=name,
            fix=f"Use `{COMMANDS[found]} {name}`.",
        )
    change(values, changes)
    values.setdefault("out", f"runs/{Path(name).stem}")
    return values


def change(values: dict[str, Any], changes: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Set values in place: `section.key=value` as text, the value being YAML, or section.key -> value.

    Raises:
        RequestError: the wrong form, or no such place.
    """
    for one in changes:
        key, separator, text = one.partition("=")
        value = changes[one] if isinstance(changes, Mapping) else _parsed(text, "set", one)
        if not key.strip() or not (separator or isinstance(changes, Mapping)):
            raise RequestError("must be section.key=value.", field="set", value=one)
        _put(values, key.strip().split("."), value, one)
    return values


def copy_recipe(
    name: Annotated[str, Field(description="name of a shipped recipe")],
    out: Annotated[str | Path | None, Field(description="output file (default: NAME.yaml)")] = None,
) -> Path:
    """Copy a shipped recipe to a file, to edit it.

    Raises:
        RequestError: no such recipe.
        OutputError: the file exists, or its folder does not.
    """
    target = Path(f"{name}.yaml" if out is None else out)
    source = _shipped(name)
    if place(target, "file").exists():
        raise OutputError("exists already.", field="out", value=str(target), fix="Name another file.")
    with replacing(target) as partial:
        shutil.copyfile(source, partial)
    return target


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base`, updated with the values of `over`, section by section; None in `over` removes a key.

    A list of named items is changed by a mapping from their names; None removes one.

    Raises:
        RequestError: a name that the list does not have.
    """
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), list):
            merged[key] = _renewed(key, merged[key], value)
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        elif value is None:
            merged.pop(key, None)
        else:
            merged[key] = value
    return merged


def _renewed(key: str, items: list[Any], over: Mapping[str, Any]) -> list[Any]:
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    unknown = next((name for name in over if name not in names), None)
    if unknown is not None:
        there = ", ".join(str(name) for name in names if name is not None)
        raise RequestError(
            "the list has no item of that name.",
            field=key,
            value=unknown,
            fix=f"It has {there}." if there else "Its items have no names: give the whole list.",
        )
    kept = [(item, over.get(str(name), {})) for item, name in zip(items, names, strict=True)]
    return [merge(item, changes) if changes else item for item, changes in kept if changes is not None]


def _extended(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a recipe over those of the recipe that it extends."""
    if path in below:
        raise RequestError("it extends itself.", field="extends", value=str(path))
    values = _read(path)
    base = values.pop("extends", None)
    if base is None:
        return values
    return merge(_extended(_find(str(base), within=path.parent), (*below, path)), values)


def _find(name: str, within: Path = Path()) -> Path:
    """A file, relative to `within`, or a shipped recipe."""
    path = within / name
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml"):
        raise RequestError("no such file.", field="recipe", value=name)
    return _shipped(name)


def _shipped(name: str) -> Path:
    known = {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    raise RequestError(
        "no such recipe.",
        field="recipe",
        value=name,
        fix=f"Did you mean {near[0]!r}?" if near else "`smolmoe recipes` lists the shipped ones.",
    )


def _read(path: Path) -> dict[str, Any]:
    from smolmoe.core.yaml_text import MOST_BYTES

    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"cannot be read: {error}.", field="recipe", value=str(path)) from error
    values = _parsed(text, "recipe", str(path))
    if not isinstance(values, dict):
        raise RequestError("a recipe is a mapping of keys to values.", field="recipe", value=str(path))
    return values


def _parsed(text: str, field: str, value: str) -> Any:
    from smolmoe.core.yaml_text import parse_yaml

    try:
        return parse_yaml(text)
    except ValueError as error:
        raise RequestError(f"not YAML: {error}.", field=field, value=value) from error


def _put(values: Any, keys: list[str], value: Any, change: str) -> None:
    """Set one value and create missing sections; items of a list are found by name, or by number."""
    key, rest = keys[0], keys[1:]
    if isinstance(values, list):
        _put_into_list(values, key, rest, value, change)
    elif not isinstance(values, dict):
        raise RequestError(f"{key!r} is inside a value that has no keys.", field="set", value=change)
    elif rest:
        if values.get(key) is None:
            values[key] = {}
        _put(values[key], rest, value, change)
    else:
        values[key] = value


def _put_into_list(values: list[Any], key: str, rest: list[str], value: Any, change: str) -> None:
    names = [item.get("name") if isinstance(item, dict) else None for item in values]
    index = names.index(key) if key in names else int(key) if key.isdigit() else len(values)
    if index >= len(values):
        there = [str(name) for name in names if name is not None] or [str(index) for index in range(len(values))]
        raise RequestError(
            f"there is no {key!r} in this list.", field="set", value=change, fix=f"It has {', '.join(there)}."
        )
    if rest:
        _put(values[index], rest, value, change)
    else:
        values[index] = value
