"""Recipes import no torch, refuse what they do not know, and say what was meant."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

from smolmoe.core.files import expanded
from smolmoe.errors import RequestError
from smolmoe.recipe import (
    AlignRecipe,
    PairsRecipe,
    ProbeRecipe,
    Recipe,
    SelectRecipe,
    TrainRecipe,
    UpcycleRecipe,
    parse,
)
from smolmoe.recipe.sweep import SweepRecipe
from smolmoe.recipe.teach import TeachRecipe


def test_defaults() -> None:
    recipe = parse(UpcycleRecipe, {"source": "a", "out": "b"})
    assert (recipe.experts, recipe.top_k, recipe.granularity, recipe.target) == (8, 2, 1, "auto")


def test_shared_is_a_word_or_a_width() -> None:
    assert parse(UpcycleRecipe, {"source": "a", "out": "b", "shared": 64}).shared == 64
    assert parse(UpcycleRecipe, {"source": "a", "out": "b", "shared": "full"}).shared == "full"
    with pytest.raises(RequestError, match="shared"):
        parse(UpcycleRecipe, {"source": "a", "out": "b", "shared": "most"})


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(RequestError, match="Did you mean 'drop_ratio'"):
        parse(UpcycleRecipe, {"source": "a", "out": "b", "dropratio": 0.5})


def test_missing_key() -> None:
    with pytest.raises(RequestError) as caught:
        parse(UpcycleRecipe, {"source": "a"})
    assert caught.value.field == "out"


def test_no_torch() -> None:
    code = "import sys, smolmoe.recipe, smolmoe.families.table; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_errors_as_json() -> None:
    error = RequestError("bad.", field="top_k", value=9, fix="Use 2.")
    assert error.to_json() == {
        "error": "RequestError",
        "message": "bad.",
        "field": "top_k",
        "value": "9",
        "fix": "Use 2.",
    }
    assert str(error) == "top_k=9: bad. Use 2."


TRAINING = {"model": {"path": "m"}, "data": {"sources": [{"path": "t"}]}, "out": "o"}
MAKERS: dict[type[Recipe], dict[str, Any]] = {
    TrainRecipe: TRAINING,
    AlignRecipe: {"method": "dpo", "model": {"path": "m"}, "data": {"train": ["t"]}, "out": "o"},
    UpcycleRecipe: {"source": "a", "out": "b"},
    SelectRecipe: {"sources": [{"path": "t"}], "tokenizer": 300},
    PairsRecipe: {"model": "m", "data": "t", "out": "o"},
    ProbeRecipe: {"model": "m", "data": TRAINING["data"], "out": "o"},
    SweepRecipe: {"tokens": [100], "out": "o"},
    TeachRecipe: {"prompts": "p", "out": "o", "base_url": "http://localhost", "model": "m"},
}
# Sections that are left out by default, with what they need.
SECTIONS: dict[str, dict[str, Any]] = {
    "guidance": {},
    "distill": {"cache": "c"},
    "carry": {"optimizer": "o"},
    "lora": {},
}


def _fields(model: type[Recipe], given: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all fields that hold a number or a word, those of sections too."""
    for name, field in model.model_fields.items():
        inner = _section_of(field.annotation)
        if inner is not None and get_origin(field.annotation) is not tuple:
            yield from _fields(inner, given, (*path, name))
        elif name not in ("trainer", "config", "columns", "experts", "sources", "validation", "stages"):
            yield (*path, name)


def _section_of(annotation: Any) -> type[Recipe] | None:
    if isinstance(annotation, type) and issubclass(annotation, Recipe):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_of(part)) is not None), None)


@pytest.mark.parametrize(
    ("model", "path"), [(model, path) for model, given in MAKERS.items() for path in _fields(model, given)]
)
def test_no_field_takes_what_makes_no_sense(model: type[Recipe], path: tuple[str, ...]) -> None:
    def refused(value: Any) -> RequestError | None:
        values = copy.deepcopy(MAKERS[model])
        section = values
        for name in path[:-1]:
            section = section.setdefault(name, copy.deepcopy(SECTIONS.get(name, {})))
        section[path[-1]] = value
        try:
            parse(model, values)
        except RequestError as error:
            return error
        return None

    for value in (math.nan, math.inf, 10**30, "", "  ", "a\0b"):
        error = refused(value)
        assert error is not None, value
        assert path[-1] in str(error.field) or error.field == model.__name__, (value, error)
    assert (refused(True) is None) == _is_flag(model, path)
    assert (refused(-1) is None) == ((model, path) in LEFT_TO_THE_PLAN), "-1"


def _is_flag(model: type[Recipe], path: tuple[str, ...]) -> bool:
    for name in path[:-1]:
        section = _section_of(model.model_fields[name].annotation)
        assert section is not None
        model = section
    annotation = model.model_fields[path[-1]].annotation
    return bool in (annotation, *get_args(annotation))


# `surgery.request` holds these against the source.
LEFT_TO_THE_PLAN = {
    *((UpcycleRecipe, (name,)) for name in ("experts", "top_k", "granularity", "shared", "router_std")),
    *((UpcycleRecipe, (name,)) for name in ("noise_std", "drop_ratio", "lora_rank", "lora_std")),
}


def test_paths_are_understood_as_commands_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    asked = {"model": {"path": "a"}, "data": {"sources": [{"path": "b"}]}}
    assert parse(TrainRecipe, {**asked, "out": "~/runs/x"}).out == tmp_path / "runs" / "x"
    assert parse(TrainRecipe, {**asked, "out": "new/../x"}).out == tmp_path / "x"
    assert parse(TrainRecipe, {**asked, "out": "runs/x"}).out == Path("runs/x")
    assert expanded("~/m") == tmp_path / "m"
    assert expanded("~nobody-of-that-name/m") == Path("~nobody-of-that-name/m")
    (tmp_path / "~" / "m").mkdir(parents=True)
    assert expanded("~/m") == Path("~/m")  # which is there as it is written
