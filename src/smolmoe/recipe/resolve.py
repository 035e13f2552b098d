"""From a recipe's name, file, object, or its fields as keywords to the parsed recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from smolmoe.errors import RequestError
from smolmoe.recipe.base import R, Recipe, parse
from smolmoe.recipe.files import change, load, merge

Given = str | Path | Recipe | Mapping[str, Any] | None
Changes = Sequence[str] | Mapping[str, Any]


def values_of(
    recipe: Given, keywords: Mapping[str, Any], *, changes: Changes = (), kind: str | None = None
) -> dict[str, Any]:
    """The values of a recipe, updated with keywords and changes, not yet validated.

    Args:
        recipe: name of a shipped recipe, YAML file, recipe, or its values; None if `keywords` has all fields.
        keywords: fields; a section is merged into the recipe's, and None removes a field.
        changes: `section.key=value` as text, the value being YAML; or section.key -> value.
        kind: `train` or `pipeline`, if only one of them is accepted.

    Raises:
        RequestError: no such recipe, or a change to a key that does not exist.
    """
    if isinstance(recipe, str | Path):
        values = load(str(recipe), kind=kind)
    elif isinstance(recipe, Recipe):  # without defaults
        values = recipe.model_dump(exclude_unset=True)
    else:
        values = dict(recipe or {})
    plain = {name: str(value) if isinstance(value, PurePath) else value for name, value in keywords.items()}
    return change(merge(values, plain), changes)


def resolve(
    model: type[R],
    recipe: Given,
    keywords: Mapping[str, Any],
    *,
    changes: Changes = (),
    kind: str | None = None,
    fixed: Mapping[str, Any] | None = None,
) -> R:
    """The parsed recipe, from the arguments of `values_of`.

    Args:
        fixed: fields that the command decides; a recipe may only have the same values.

    Raises:
        RequestError: the first invalid value.
    """
    if isinstance(recipe, model) and not keywords and not changes and not fixed:
        return recipe
    values = values_of(recipe, keywords, changes=changes, kind=kind)
    for name, value in (fixed or {}).items():
        if values.setdefault(name, value) != value:
            raise RequestError(
                f"the recipe is for another {name} than {value!r}.",
                field=name,
                value=values[name],
                fix=f"Use `smolmoe align {values[name]}`, or smolmoe.{values[name]} in Python.",
            )
    return parse(model, values)
