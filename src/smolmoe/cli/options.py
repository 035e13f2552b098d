"""Command-line parameters, from the fields of a verb: name, type, default, range and help."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import annotated_types
import typer
from pydantic.fields import FieldInfo

from smolmoe.errors import RequestError


def parameter(
    name: str, field: FieldInfo, *, argument: bool, names: Sequence[str] = (), envvar: str | None = None
) -> inspect.Parameter:
    """A parameter of a typer command for a field; None if it is not given.

    Args:
        names: of the option, if they differ from the field's.
    """
    kind = _kind(field.annotation)
    text = help_of(field)
    required = field.is_required() or name == "recipe"  # Python callers may give its fields instead
    if argument:
        several = kind in ("list", "mapping")
        metavar = name.upper() if kind != "mapping" else "NAME=PATH[,PATH...]"
        info: Any = typer.Argument(metavar=f"{metavar}..." if several and kind == "list" else metavar, help=text)
    else:
        dashed = f"--{name.replace('_', '-')}"
        if kind == "bool":
            declared = list(names) or ([f"{dashed}/--no-{dashed[2:]}"] if field.default is True else [dashed])
        else:
            declared = list(names) or [dashed]
        form = "KEY=VALUE" if name == "set" else _metavar(kind, field.annotation)
        info = typer.Option(*declared, help=text, metavar=form, envvar=envvar)
    plain: Any = {
        "list": list[str],
        "groups": list[str],
        "mapping": list[str],
        "bool": bool,
        "int": int,
        "float": float,
    }
    annotation = plain.get(kind, Path if kind == "path" else str)
    default: Any = inspect.Parameter.empty if required else None
    annotation = Annotated[annotation if required else annotation | None, info]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def help_of(field: FieldInfo) -> str:
    """The field's description as a sentence, its default and its range in brackets."""
    text = (field.description or "").strip()
    text, _, stated = text.partition(" (default: ") if text.endswith(")") else (text, "", "")
    default = stated[:-1] or _shown(field)
    notes = "; ".join(part for part in (default and f"default: {default}", _range(field)) if part)
    sentence = text[:1].upper() + text[1:] + "."
    return sentence + (f"  [{notes}]" if notes else "")


def value_of(name: str, given: Any, field: FieldInfo) -> Any:
    """The value that a verb takes, from the one on the command line.

    Raises:
        RequestError: it does not have the right form.
    """
    kind = _kind(field.annotation)
    if kind == "mapping":
        return _mapping(name, given, field.annotation)
    if kind == "tuple":
        return _numbers(name, [part.strip() for part in given.split(",") if part.strip()], field)
    if kind == "groups":
        return [[part.strip() for part in group.split(",")] for group in given]
    return given


def _numbers(name: str, parts: list[str], field: FieldInfo) -> Any:
    """Numbers are checked here: the recipe's error would name an index of a list, which the user did not write."""
    inside = [*_flat(field.annotation), *field.metadata]
    kinds = {part for part in inside if part in (int, float)}
    if not kinds or Ellipsis not in inside or any("Validator" in type(part).__name__ for part in inside):
        return parts
    try:
        return tuple(kinds.copy().pop()(part) for part in parts)
    except ValueError as error:
        numbers = "whole numbers" if kinds == {int} else "numbers"
        raise RequestError(
            f"must be {numbers}, with commas between.", field=name, value=",".join(parts), fix="E.g. 1,4,16."
        ) from error


def _mapping(name: str, pairs: Sequence[str], annotation: Any) -> dict[str, Any]:
    """Every NAME=VALUE, by name."""
    several = "Sequence" in str(annotation)
    form = "NAME=PATH[,PATH...]" if several else "NAME=PATH"
    found: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        values = value.split(",")
        if not (key and separator and all(values if several else [value])):
            raise RequestError(f"must be {form}.", field=name, value=pair, fix="E.g. code=runs/code.")
        if key in found:
            fix = "Several seeds are NAME=PATH,PATH." if several else "Give each name once."
            raise RequestError("is given twice.", field=name, value=key, fix=fix)
        found[key] = values if several else value
    return found


def _flat(annotation: Any) -> list[Any]:
    """All types in an annotation, and the validators of the recipe's own types."""
    parts = [annotation, *getattr(annotation, "__metadata__", ())]
    for part in typing.get_args(annotation):
        parts += [part] if typing.get_origin(annotation) is Literal else _flat(part)
    return parts


def _kind(annotation: Any) -> str:
    """How a value is written: bool, int, float, path, str, or list, tuple, groups, mapping."""
    if typing.get_origin(annotation) is Annotated:
        return _kind(typing.get_args(annotation)[0])
    parts = [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(annotation) if part is not type(None)]
    origins = [typing.get_origin(part) or part for part in parts]
    if any(isinstance(origin, type) and issubclass(origin, Mapping) for origin in origins):
        return "mapping"
    if tuple in origins:
        return "tuple"
    for part, origin in zip(parts, origins, strict=True):
        if isinstance(origin, type) and issubclass(origin, Sequence) and origin is not str:
            inner = typing.get_origin(typing.get_args(part)[0])
            return "groups" if isinstance(inner, type) and issubclass(inner, Sequence) else "list"
    if len(parts) == 1:
        if origins[0] is Annotated:
            return _kind(parts[0])
        simple = {bool: "bool", int: "int", float: "float", Path: "path"}
        return simple.get(parts[0], "str")
    return "path" if all(part in (str, Path) for part in parts) and Path in parts else "str"


def _metavar(kind: str, annotation: Any) -> str | None:
    if kind == "mapping":
        return "NAME=PATH"
    if kind == "groups":
        return "A,B..."
    if kind == "tuple":
        return "N[,...]" if {int, float} & {part for part in _flat(annotation) if isinstance(part, type)} else "A[,...]"
    words = [part for part in _flat(annotation) if isinstance(part, str)]
    number = int in _flat(annotation)
    return "|".join([*words, *(["N"] if number else [])]) if words else None


def _shown(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if field.is_required() or default is None or default is False or default in ((), {}, [], ""):
        return ""
    if default is True:
        return "on"
    if isinstance(default, tuple | list):
        return ",".join(map(str, default))
    return str(default).replace("\n", "\\n")


def _range(field: FieldInfo) -> str:
    """The bounds of a number in words; those of a seed are left out."""
    bounds: dict[str, Any] = {}
    for part in field.metadata:
        for name in ("ge", "gt", "le", "lt"):
            if isinstance(part, getattr(annotated_types, name.capitalize())):
                bounds[name] = getattr(part, name)
    least, most = bounds.get("ge"), bounds.get("le")
    if most is not None and least is not None:
        return f"{least:g} to {most:g}"
    said = [f"at least {least:g}"] if least else []
    said += [f"above {bounds['gt']:g}"] if "gt" in bounds else []
    said += [f"at most {most:g}"] if most is not None else []
    said += [f"below {bounds['lt']:g}"] if "lt" in bounds and bounds["lt"] < 10**6 else []
    return ", ".join(said)
