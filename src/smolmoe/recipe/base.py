"""What every recipe is: frozen, and closed to keys that it does not know."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from smolmoe.errors import RequestError


class Recipe(BaseModel):
    """Base of all recipes and of their sections."""

    model_config = ConfigDict(extra="forbid", frozen=True)


R = TypeVar("R", bound=Recipe)


def parse(model: type[R], values: dict[str, Any]) -> R:
    """Validate `values` as `model`.

    Raises:
        RequestError: for the first value that does not fit, by its dotted path, with the nearest valid key where the
            key is unknown.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _request_error(model, error) from None


def unknown_key(path: str, value: object, known: list[str]) -> RequestError:
    """The error for a key that is not among the `known` ones of its section."""
    near = difflib.get_close_matches(path.rpartition(".")[2], known, n=1)
    fix = f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(known)}."
    return RequestError("unknown key.", field=path, value=value, fix=fix)


def check_passed_on(values: Mapping[str, Any], known: Sequence[str], decided: Mapping[str, str]) -> None:
    """Refuse under `trainer` what is no field of its config, and what is decided elsewhere.

    Args:
        known: fields of the config.
        decided: field -> what to use instead.

    Raises:
        RequestError
    """
    for key, value in values.items():
        if key in decided:
            raise RequestError(
                "this is decided elsewhere in the recipe.",
                field=f"trainer.{key}",
                value=value,
                fix=f"Use {decided[key]}.",
            )
        if key not in known:
            raise unknown_key(f"trainer.{key}", value, [name for name in known if name not in decided])


def new_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of `trainer` under the names that transformers has given its fields since; of two the later one counts."""
    renamed = {
        "gradient_checkpointing": "activation_checkpointing",
        "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
    }
    return {renamed.get(name, name): value for name, value in values.items()}


def _request_error(model: type[Recipe], error: ValidationError) -> RequestError:
    first = error.errors(include_url=False)[0]
    section, keys = _section(model, first["loc"])
    field = ".".join(keys) or model.__name__
    if first["type"] == "extra_forbidden":
        return unknown_key(field, first["input"], list(section.model_fields))
    described = section.model_fields[keys[-1]].description if keys and keys[-1] in section.model_fields else ""
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    return RequestError(f"{message}.", field=field, value=first["input"], fix=f"({described})" if described else None)


def _section(model: type[Recipe], location: tuple[int | str, ...]) -> tuple[type[Recipe], list[str]]:
    """The innermost section that a location lies in, and the keys that lead to it, without pydantic's own steps."""
    keys: list[str] = []
    for step in location:
        if keys and isinstance(step, int):
            keys[-1] = f"{keys[-1]}[{step}]"
            continue
        name = keys[-1].partition("[")[0] if keys else ""
        if name in model.model_fields:
            inner = _nested(model.model_fields[name].annotation)
            if inner is None:
                break  # a branch of a union: not a key of the user's
            model = inner
        keys.append(str(step))
    return model, keys


def _nested(annotation: Any) -> type[Recipe] | None:
    """The recipe section in an annotation such as `Section | None` or `tuple[Section, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Recipe):
        return annotation
    return next((found for part in get_args(annotation) if (found := _nested(part)) is not None), None)
