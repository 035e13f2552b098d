"""A recipe as YAML with comments: the descriptions of the recipe models, and why values were chosen."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import yaml

from smolmoe.pipeline.stages import STAGES
from smolmoe.recipe import PipelineRecipe, Recipe, StageRecipe, TrainRecipe
from smolmoe.recipe.files import kind_of

WIDTH = 118
_WHOLE = 72  # characters of a section that is written in one line


def recipe_text(values: Mapping[str, Any], *, title: Sequence[str], why: Mapping[str, str]) -> str:
    """The YAML of a pipeline or a training.

    Args:
        title: lines at the top.
        why: dotted key -> reason of its value, in place of the key's description. Stages are found by their names.
    """
    model: type[Recipe] = PipelineRecipe if kind_of(values) == "pipeline" else TrainRecipe
    lines = [f"# {line}".rstrip() for line in title]
    return "\n".join([*lines, *_Writer(why).section(values, model, "", 0)]) + "\n"


class _Writer:
    def __init__(self, why: Mapping[str, str]):
        self.why = why
        self.said: set[str] = set()  # descriptions, each once

    def section(self, values: Mapping[str, Any], model: type[Recipe] | None, path: str, depth: int) -> Iterator[str]:
        for key, value in values.items():
            where = f"{path}.{key}" if path else key
            inner = _model_of(model, key)
            note = self._note(where, model, key)
            if key == "stages" and model is PipelineRecipe:
                yield from _line(f"{key}:", note, depth)
                for stage in value:
                    yield from self.stage(stage, depth + 1)
            elif isinstance(value, Mapping) and value and self._is_long(value, inner, where, depth):
                yield from _line(f"{_flow(key)}:", note, depth)
                yield from self.section(value, inner, where, depth + 1)
            elif isinstance(value, list | tuple) and len(f"{key}: {_flow(value)}") > _WHOLE:
                yield from _line(f"{_flow(key)}:", note, depth)
                for item in value:
                    yield from _line(f"- {_flow(item)}", "", depth + 1)
            else:
                yield from _line(f"{_flow(key)}: {_flow(value)}", note, depth)

    def stage(self, stage: Mapping[str, Any], depth: int) -> Iterator[str]:
        name = str(stage["name"])
        yield from _line(f"- name: {_flow(name)}", self.why.get(f"stages.{name}", ""), depth)
        for key, value in stage.items():
            if key == "name":
                continue
            where, kind = f"stages.{name}.{key}", STAGES.get(key)
            if kind is None or not value:  # an empty section is {}; without it YAML reads null
                yield from _line(f"{key}: {_flow(value)}", self._note(where, StageRecipe, key), depth + 1)
                continue
            yield from _line(f"{key}:", "", depth + 1)
            yield from self.section(value, kind.recipe, where, depth + 2)

    def _note(self, where: str, model: type[Recipe] | None, key: str) -> str:
        if where in self.why:
            return self.why[where]
        described = model.model_fields[key].description if model is not None and key in model.model_fields else None
        if not described or described in self.said:
            return ""
        self.said.add(described)
        return described

    def _is_long(self, value: Mapping[str, Any], inner: type[Recipe] | None, where: str, depth: int) -> bool:
        """Whether a section is written in several lines: its values are explained, or it is long."""
        explained = any(known.startswith(f"{where}.") for known in self.why)
        return explained or inner is not None or 2 * depth + len(_flow(value)) > _WHOLE


def _model_of(model: type[Recipe] | None, key: str) -> type[Recipe] | None:
    """The recipe model of a section."""
    if model is PipelineRecipe and key == "defaults":
        return TrainRecipe
    if model is None or key not in model.model_fields:
        return None
    annotation = model.model_fields[key].annotation
    found = (part for part in (annotation, *get_args(annotation)) if isinstance(part, type))
    return next((part for part in found if issubclass(part, Recipe)), None)


def _line(text: str, note: str, depth: int) -> Iterator[str]:
    """A line with its comment after it, or above it if both are too long."""
    indent = "  " * depth
    whole = f"{indent}{text}  # {note}" if note else f"{indent}{text}"
    if len(whole) <= WIDTH:
        yield whole
        return
    yield from (f"{indent}# {part}" for part in textwrap.wrap(note, WIDTH - len(indent) - 2))
    yield f"{indent}{text}"


def _flow(value: Any) -> str:
    """A value in one line."""
    plain = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False)
    return plain.removesuffix("\n").removesuffix("\n...").strip()
