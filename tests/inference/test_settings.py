"""Which temperature counts: the asked one, the model's own, or the default."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import GenerationConfig

from smolmoe.errors import RequestError
from smolmoe.inference.settings import Sampling, resolve_sampling
from smolmoe.recipe.generation import TEMPERATURE, TOP_P, GenerationRecipe


def resolved(own: dict[str, Any], **asked: Any) -> Sampling:
    return resolve_sampling(GenerationRecipe(**asked), GenerationConfig(**own))


@pytest.mark.parametrize(
    ("own", "asked", "temperature", "top_p", "origin"),
    [
        ({}, {}, TEMPERATURE, TOP_P, "default"),
        ({}, {"temperature": 0.2}, 0.2, TOP_P, "asked"),
        ({"temperature": 0.6}, {}, 0.6, 1.0, "model"),
        ({"temperature": 0.6, "top_p": 0.8}, {"temperature": 0.0}, 0.0, 0.8, "asked"),
        ({"do_sample": True}, {}, 1.0, 1.0, "model"),
        ({"do_sample": False, "temperature": 0.6}, {}, 0.0, 1.0, "model"),
        ({"top_k": 20}, {}, 1.0, 1.0, "default"),
        ({"repetition_penalty": 1.1}, {}, TEMPERATURE, TOP_P, "default"),
    ],
)
def test_the_asked_value_then_the_models_then_the_default(
    own: dict[str, Any], asked: dict[str, Any], temperature: float, top_p: float, origin: str
) -> None:
    found = resolved(own, **asked)
    assert (found.temperature, found.top_p, found.origin["temperature"]) == (temperature, top_p, origin)
    assert found.repetition_penalty == own.get("repetition_penalty", 1.0)
    assert found.top_k == own.get("top_k", 0)


def test_in_words_with_the_origin() -> None:
    assert str(resolved({})) == "temperature 0.7, top-p 0.95 (default); seed 0"
    assert str(resolved({"temperature": 0.6, "top_k": 20}, top_p=0.5, seed=3)) == (
        "temperature 0.6, top-k 20 (the model's own); top-p 0.5 (as asked); seed 3"
    )
    assert str(resolved({"repetition_penalty": 1.1}, temperature=0)) == (
        "greedy (as asked); repetition penalty 1.1 (the model's own)"
    )


def test_an_impossible_value_of_the_model_is_named_unless_it_does_not_count() -> None:
    own = GenerationConfig()
    own.top_p = 7.0
    with pytest.raises(RequestError, match=r"generation_config\.json sets top_p to 7\.0"):
        resolve_sampling(GenerationRecipe(), own)
    assert resolve_sampling(GenerationRecipe(top_p=0.5), own).top_p == 0.5
