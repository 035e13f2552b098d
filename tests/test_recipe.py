"""Recipes import no torch, refuse what they do not know, and say what was meant."""

from __future__ import annotations

import subprocess
import sys

import pytest

from smolmoe.errors import RequestError
from smolmoe.recipe import UpcycleRecipe, parse


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
