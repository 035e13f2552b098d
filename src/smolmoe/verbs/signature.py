"""Signatures of verbs, made from recipe models; the command line and the documentation read them as fields."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field
from pydantic.fields import FieldInfo

from smolmoe.recipe.base import R, Recipe
from smolmoe.recipe.resolve import resolve
from smolmoe.recipe.words import RecipeGiven, Set

T = TypeVar("T")
POSITIONAL, KEYWORD = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY


def takes(
    model: type[R],
    *arguments: str,
    file: bool = False,
    kind: str | None = None,
    fixed: Mapping[str, Any] | None = None,
    extra: type[Recipe] | None = None,
    prepare: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    like: Callable[..., Any] | None = None,
) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Make a function of a parsed recipe accept a recipe or its fields.

    Args:
        arguments: fields that are positional.
        file: the first argument is a recipe: the name of a shipped one, a file, or an object. Otherwise it may be the
            first of `arguments`, an object or a .yaml file.
        kind: of recipe, as for `recipe.files.load`.
        fixed: fields that this verb decides.
        extra, prepare: further fields, and the function that turns them into the recipe's.
        like: a verb of the same recipe, whose other options the function takes as well.
    """

    def decorate(run: Callable[..., T]) -> Callable[..., T]:
        own = _own(like or run, list(model.model_fields) if like else ())

        @functools.wraps(run)
        def verb(*given: Any, **keywords: Any) -> T:
            options = {name: keywords.pop(name) for name in own if name in keywords}
            recipe, changes = keywords.pop("recipe", None), keywords.pop("set", ())
            if given and recipe is None and (file or _is_recipe(given[0])):
                recipe, *given = given  # type: ignore[assignment]
            if len(given) > len(arguments):
                raise TypeError(f"{run.__name__}() takes {len(arguments) + file} positional arguments at most")
            values = dict(zip(arguments, given, strict=False)) | keywords
            if prepare is not None and recipe is None:
                values = prepare(values)
            return run(resolve(model, recipe, values, changes=changes, kind=kind, fixed=fixed), **options)

        fields = {**(extra.model_fields if extra else {}), **model.model_fields}
        hidden = {*(fixed or {}), *(("sources",) if extra else ())}
        names = [name for name in (*arguments, *fields) if name not in hidden]
        made = {name: _parameter(name, fields[name], name in arguments, file) for name in names}
        first = [_plain("recipe", RecipeGiven, POSITIONAL, None), _plain("set", Set, KEYWORD, ())] if file else []
        parameters = [*first, *made.values(), *own.values()]
        returns = inspect.signature(like or run).return_annotation
        parameters.sort(key=lambda parameter: parameter.kind)
        verb.__annotations__ = {}
        verb.__signature__ = inspect.Signature(parameters, return_annotation=returns)  # type: ignore[attr-defined]
        return verb

    return decorate


def spells_out(model: type[Recipe]) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Put the fields of a recipe into the signature of a function that takes them as `**keywords`."""

    def decorate(run: Callable[..., T]) -> Callable[..., T]:
        found = inspect.signature(run)
        hints = _hints(run)
        kept = [one.replace(annotation=hints.get(one.name, one.annotation)) for one in found.parameters.values()]
        kept = [one for one in kept if one.kind is not inspect.Parameter.VAR_KEYWORD]
        made = [_parameter(name, field, False, name == "out") for name, field in model.model_fields.items()]
        everything = sorted([*kept, *made], key=lambda one: one.kind)
        run.__signature__ = found.replace(parameters=everything)  # type: ignore[attr-defined]
        return run

    return decorate


def fields_of(verb: Callable[..., Any]) -> dict[str, tuple[inspect.Parameter, FieldInfo]]:
    """The described parameters of a verb (all except `report` and the like), as pydantic fields."""
    hints = _hints(verb)
    found = {}
    for name, parameter in inspect.signature(verb).parameters.items():
        annotation = hints.get(name, parameter.annotation)
        if typing.get_origin(annotation) is Annotated:
            required = parameter.default is inspect.Parameter.empty
            default = ... if required else parameter.default
            found[name] = (parameter, FieldInfo.from_annotated_attribute(annotation, default))
    return found


def said(model: type[Recipe], name: str) -> FieldInfo:
    """The description of a recipe's field, for a verb with the same argument."""
    return typing.cast(FieldInfo, Field(description=model.model_fields[name].description))


def _own(run: Callable[..., Any], fields: Sequence[str] = ()) -> dict[str, inspect.Parameter]:
    """The parameters of a function that are not fields of its recipe."""
    hints = _hints(run)
    own = [one for one in inspect.signature(run).parameters.values() if one.name not in ("recipe", "set", *fields)]
    return {one.name: one.replace(annotation=hints.get(one.name, one.annotation), kind=KEYWORD) for one in own}


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations as objects, without those that only a type checker can resolve."""
    found = {}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        if isinstance(annotation, str):
            try:
                annotation = eval(annotation, inspect.unwrap(function).__globals__)
            except NameError:
                continue
        found[name] = annotation
    return found


def _plain(name: str, annotation: Any, kind: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def _parameter(name: str, field: FieldInfo, positional: bool, file: bool) -> inspect.Parameter:
    """A keyword for a field; with a recipe file, a required field may be in the file."""
    description = field.description or f"section `{name}` of the recipe"
    annotation = Annotated[field.annotation, Field(description=description), *field.metadata]  # type: ignore[name-defined]
    default = field.get_default(call_default_factory=True)
    if field.is_required():
        default = None if file else inspect.Parameter.empty
    return _plain(name, annotation, POSITIONAL if positional else KEYWORD, default)


def _is_recipe(given: Any) -> bool:
    return isinstance(given, Recipe | Mapping) or (
        isinstance(given, str | Path) and Path(given).suffix in (".yaml", ".yml")
    )
