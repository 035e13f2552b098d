"""Recipes with comments say what the recipe is, and are it."""

from __future__ import annotations

from typing import Any

import pytest

from smolmoe.core.yaml_text import parse_yaml
from smolmoe.pipeline.recipe_text import WIDTH, recipe_text
from smolmoe.recipe.files import load, recipes
from smolmoe.recipe.train import GuidanceRecipe


@pytest.mark.parametrize("name", [one.name for one in recipes()])
def test_the_text_is_the_recipe(name: str) -> None:
    values = load(name)
    text = recipe_text(values, title=["A title: with", "", "lines"], why={})
    assert parse_yaml(text) == values
    assert max(map(len, text.splitlines())) <= max(WIDTH, 140)  # a long list of sources may be longer
    assert text.startswith("# A title: with\n#\n# lines\n")


def test_comments_are_the_descriptions_or_the_reasons() -> None:
    values: dict[str, Any] = load("specialise-model")
    values["stages"][1]["upcycle"]["source"] = "models/a: b"
    why = {"defaults.data.length": "documents are short", "stages.moe": "the conversion"}
    text = recipe_text(values, title=[], why=why)
    lines = [line.strip() for line in text.splitlines()]
    assert "length: 512  # documents are short" in lines
    assert "- name: moe  # the conversion" in lines
    described = GuidanceRecipe.model_fields["weight"].description
    assert f"weight: 1.0  # {described}" in lines
    assert "weight: 0.35" in lines, "a description is said once"
    assert parse_yaml(text) == values
