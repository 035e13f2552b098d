"""Values by step: their forms, what they are at each step, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from smolmoe.errors import RequestError
from smolmoe.recipe import TrainRecipe, parse
from smolmoe.recipe.schedule import Schedule, schedule_of


def recipe(**changes: Any) -> TrainRecipe:
    data = {"sources": [{"path": "text.jsonl"}], "length": 32}
    return parse(TrainRecipe, {"model": {"path": "moe"}, "data": data, "out": "run", **changes})


def values(given: Any, steps: int) -> list[float]:
    return [schedule_of(given).at(step) for step in range(steps)]


def test_a_value_holds_until_the_next_or_is_interpolated() -> None:
    found = recipe(objective={"bias_rate": {0: 0.01, 3: 0.001}}, routing={"sample": {"linear": {0: 1, 4: 0}}})
    assert values(found.objective.bias_rate, 5) == [0.01, 0.01, 0.01, 0.001, 0.001]
    assert values(found.routing.sample, 6) == [1, 0.75, 0.5, 0.25, 0, 0]
    assert values(Schedule(((0, 1.0), (2, 3.0), (4, 1.0)), linear=True), 6) == [1, 2, 3, 2, 1, 1]


def test_numbers_and_true_stay_what_they_are() -> None:
    plain = recipe(objective={"bias_rate": 0.01}, routing={"sample": True})
    assert (plain.objective.bias_rate, plain.routing.sample) == (0.01, True)
    assert values(plain.routing.sample, 2) == [1, 1]
    assert recipe().routing.top_k is None
    assert not Schedule(((0, 0.0), (5, 0.0)))
    assert Schedule(((0, 0.0), (5, 0.1)))


@pytest.mark.parametrize("write", [json.dumps, yaml.safe_dump])
def test_what_is_written_is_read_as_the_same(write: Any) -> None:
    asked = recipe(
        objective={"bias_rate": {0: 0.01, 300: 0.001}},
        routing={"sample": {"linear": {0: 1, 200: 0}}, "top_k": {100: 4, 0: 8, 200: 2}},
    )
    again = parse(TrainRecipe, yaml.safe_load(write(asked.model_dump(mode="json"))))
    assert again == asked
    assert schedule_of(again.routing.top_k or 0).points == ((0, 8), (100, 4), (200, 2))


@pytest.mark.parametrize(
    ("section", "key", "value", "problem"),
    [
        ("objective", "bias_rate", {0: 0.01, 300: -0.001}, "at least 0"),
        ("objective", "bias_rate", {100: 0.01}, "step 0"),
        ("objective", "bias_rate", {0: 0.01, "0": 0.02}, "one for each step"),
        ("objective", "bias_rate", {"first": 0.01}, "'first' is not a step"),
        ("objective", "bias_rate", {-1: 0.01, 0: 1}, "not a step"),
        ("objective", "bias_rate", {}, "number, {step: value"),
        ("objective", "bias_rate", True, "true or false"),
        ("objective", "bias_rate", float("nan"), "number, {step: value"),
        ("routing", "sample", "fading", "number, {step: value"),
        ("routing", "sample", {0: True, 9: False}, "number, {step: value"),
        ("routing", "sample", {"linear": {0: 1}, 5: 0}, "not a step"),
        ("routing", "top_k", {0: 8, 10: 2.5}, "1, 2, 3"),
        ("routing", "top_k", {0: 8, 10: 0}, "1, 2, 3"),
    ],
)
def test_what_is_no_schedule(section: str, key: str, value: Any, problem: str) -> None:
    with pytest.raises(RequestError, match=problem) as caught:
        recipe(**{section: {key: value}})
    assert caught.value.field == f"{section}.{key}"


def test_whole_values_of_a_line_are_all_between() -> None:
    assert Schedule(((0, 8), (10, 8), (20, 4)), linear=True).whole_values() == {4, 5, 6, 7, 8}
    assert Schedule(((0, 8), (10, 4))).whole_values() == {4, 8}
