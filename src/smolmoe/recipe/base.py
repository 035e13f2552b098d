"""The base of all recipes: frozen, and unknown keys are errors."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from smolmoe.core.files import expanded
from smolmoe.errors import RequestError


class Recipe(BaseModel):
    """Base of all recipes and of their sections."""

    # Validators are built when a recipe is first parsed: the help of a command needs the fields only.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    @field_validator("*", mode="before")
    @classmethod
    def _says_something(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse empty texts, and booleans in place of numbers, which pydantic reads as 1 and 0."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        for part in value if isinstance(value, list | tuple) else (value,):
            if isinstance(part, str) and (not part.strip() or "\0" in part):
                raise ValueError("must not be empty" if not part.strip() else "must not have a null character in it")
            if isinstance(part, bool) and not _admits(annotation, bool):
                raise ValueError("must not be true or false")
            if isinstance(part, int) and abs(part) >= 2**63:
                raise ValueError("is too large a number")
        return value

    @field_validator("*")
    @classmethod
    def _written_out(cls, value: Any) -> Any:
        """Expand `~`, which no shell does in a recipe, and resolve `..`."""
        if not isinstance(value, Path):
            return value
        path = expanded(value)
        return Path(os.path.realpath(path)) if ".." in path.parts else path


R = TypeVar("R", bound=Recipe)
Index = Annotated[int, Field(ge=0)]  # of an expert, a layer, a step
Vocabulary = Annotated[int, Field(ge=258, le=10_000_000)]  # of a tokenizer to learn: 256 bytes and two special tokens


def parse(model: type[R], values: dict[str, Any]) -> R:
    """Validate `values` as `model`.

    Raises:
        RequestError: the first invalid value, by its dotted path; for an unknown key with the nearest valid one.
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
    """Refuse values under `trainer` that are not fields of its config, or that are decided elsewhere.

    Args:
        known: fields of the config.
        decided: field -> what to use instead; or "nothing", with the reason after a colon.

    Raises:
        RequestError
    """
    for key, value in values.items():
        if key in decided:
            place, _, why = decided[key].partition("nothing")
            raise RequestError(
                "this is decided elsewhere in the recipe." if place else f"smolmoe decides this{why}.",
                field=f"trainer.{key}",
                value=value,
                fix=f"Use {decided[key]}." if place else "Leave it out.",
            )
        if key not in known:
            raise unknown_key(f"trainer.{key}", value, [name for name in known if name not in decided])


def new_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of `trainer` under the current names of transformers' fields; the last of two counts."""
    renamed = {
        "gradient_checkpointing": "activation_checkpointing",
        "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
    }
    return {renamed.get(name, name): value for name, value in values.items()}


def _request_error(model: type[Recipe], error: ValidationError) -> RequestError:
    first = _most_telling(error.errors(include_url=False))
    section, keys = _section(model, first["loc"])
    field = ".".join(keys) or model.__name__
    if first["type"] == "extra_forbidden":
        return unknown_key(field, first["input"], list(section.model_fields))
    known = [key.partition("[")[0] for key in keys if key.partition("[")[0] in section.model_fields]
    described = section.model_fields[known[0]].description if known else ""
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    return RequestError(f"{message}.", field=field, value=first["input"], fix=f"({described})" if described else None)


def _most_telling(errors: list[Any]) -> Any:
    """The first error; for a value that fits no branch of a union, one that says more than the wrong type."""
    first = errors[0]
    same = [error for error in errors if error["loc"][:-1] == first["loc"][:-1] and error["input"] == first["input"]]
    return next((error for error in same if not error["type"].endswith(("_type", "_parsing"))), first)


def _section(model: type[Recipe], location: tuple[int | str, ...]) -> tuple[type[Recipe], list[str]]:
    """The innermost section of a location, and the keys of its path, without those that pydantic adds."""
    keys: list[str] = []
    for step in location:
        if keys and isinstance(step, int):
            keys[-1] = f"{keys[-1]}[{step}]"
            continue
        name = keys[-1].partition("[")[0] if keys else ""
        if name in model.model_fields:
            inner = _nested(model.model_fields[name].annotation)
            if inner is None:
                if _is_mapping(model.model_fields[name].annotation):
                    keys.append(str(step))
                break  # a branch of a union, which the user did not write
            model = inner
        keys.append(str(step))
    return model, keys


def _nested(annotation: Any) -> type[Recipe] | None:
    """The recipe section in an annotation such as `Section | None` or `tuple[Section, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Recipe):
        return annotation
    return next((found for part in get_args(annotation) if (found := _nested(part)) is not None), None)


def _is_mapping(annotation: Any) -> bool:
    """Whether the keys are the user's choice."""
    return get_origin(annotation) is dict or any(_is_mapping(part) for part in get_args(annotation))


def _admits(annotation: Any, kind: type) -> bool:
    """Whether an annotation, or a part of it, admits this type."""
    if annotation is Any or annotation is kind:
        return True
    return any(_admits(part, kind) for part in get_args(annotation)) or any(
        isinstance(part, kind) for part in get_args(annotation)
    )
