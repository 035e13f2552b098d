"""A recipe by name, by path, as an object, and as keywords."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import smolmoe
from smolmoe.errors import RequestError
from smolmoe.recipe import AlignRecipe, TrainRecipe, parse
from smolmoe.recipe.resolve import resolve

VALUES = {"model": {"path": "m"}, "data": {"sources": [{"path": "t"}]}, "trainer": {"max_steps": 5}, "out": "o"}


def test_all_ways_lead_to_the_same_recipe(tmp_path: Path) -> None:
    asked = parse(TrainRecipe, VALUES)
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(VALUES))
    for given, keywords in ((file, {}), (str(file), {}), (VALUES, {}), (asked, {}), (None, VALUES)):
        assert resolve(TrainRecipe, given, keywords) == asked
    assert resolve(TrainRecipe, asked, {}) is asked


def test_keywords_and_changes_are_merged_section_by_section(tmp_path: Path) -> None:
    found = resolve(TrainRecipe, VALUES, {"trainer": {"learning_rate": 1}}, changes=["data.length=64"])
    assert found.trainer == {"max_steps": 5, "learning_rate": 1}
    assert found.data.length == 64
    found = resolve(TrainRecipe, "tinystories-moe", {"out": tmp_path}, changes={"trainer.max_steps": 3})
    assert (found.out, found.trainer["max_steps"]) == (tmp_path, 3)
    assert VALUES["trainer"] == {"max_steps": 5}


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(RequestError, match="Did you mean 'trainer'"):
        smolmoe.train("tinystories-moe", trainr={"max_steps": 1})
    with pytest.raises(RequestError, match="another method than 'sft'"):
        smolmoe.sft(VALUES, method="dpo")
    with pytest.raises(RequestError, match=r"must be section\.key=value"):
        smolmoe.train("tinystories-moe", set=["steps"])
    with pytest.raises(TypeError):
        smolmoe.train("tinystories-moe", "two")
    values = {**VALUES, "data": {"train": ["rows.jsonl"]}}
    assert resolve(AlignRecipe, values, {}, fixed={"method": "sft"}).method == "sft"


def test_a_function_takes_a_recipe_or_keywords(tmp_path: Path) -> None:
    from tests import zoo

    from smolmoe.recipe import UpcycleRecipe

    by_words = smolmoe.upcycle(zoo.folder("llama"), tmp_path / "a", experts=4, dry_run=True)
    recipe = UpcycleRecipe(source=str(zoo.folder("llama")), out=tmp_path / "a", experts=4)
    by_recipe = smolmoe.upcycle(recipe, dry_run=True)
    assert by_words.plan.layout == by_recipe.plan.layout
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"source": str(zoo.folder("llama")), "experts": 4}))
    by_file = smolmoe.upcycle(tmp_path / "a.yaml", out=tmp_path / "a", dry_run=True)
    assert by_file.plan.layout == by_recipe.plan.layout
