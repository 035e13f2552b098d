"""Values that change over the first steps, and biases set before them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import dense_llama, edit_tensors, moe_of, random_moe, save
from safetensors.torch import load_file
from tests.training.runs import moe_folder, recipe, rows, trainer

from smolmoe.errors import RequestError
from smolmoe.moe.balanced_bias import TARGET
from smolmoe.recipe import TrainRecipe, parse
from smolmoe.recipe.train import ObjectiveRecipe, RoutingRecipe
from smolmoe.training.objective import Objective
from smolmoe.training.run import estimate, train

CONSTANT = {"lr_scheduler_type": "constant", "warmup_steps": 0}
FADING: dict[str, Any] = {
    "objective": {"bias_rate": {0: 0.05, 5: 0.01}, "preset_bias": 256, "load_balance": 0.01},
    "routing": {"sample": {"linear": {0: 1, 6: 0}}, "top_k": {0: 4, 3: 3, 5: 2}},
}
BIAS = "e_score_correction_bias"


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Glm4Moe: sigmoid gates, a selection bias, one MoE layer."""
    return save(random_moe("glm4_moe"), tmp_path_factory.mktemp("schedules") / "moe")


def bias_of(folder: Path) -> torch.Tensor:
    return next(tensor for name, tensor in load_file(folder / "model.safetensors").items() if name.endswith(BIAS))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_resumed_in_the_middle_it_goes_on_exactly(tmp_path: Path, biased: Path, checkpointing: bool) -> None:
    options = {**CONSTANT, "activation_checkpointing": checkpointing}
    longer = recipe(tmp_path, biased, **FADING, trainer=trainer(max_steps=8, **options))
    whole = train({**longer, "out": str(tmp_path / "whole")})
    train({**longer, "trainer": trainer(max_steps=4, **options)})
    again = train(longer, resume="latest")
    assert rows(again.out, "step") == rows(whole.out, "step")
    assert torch.equal(bias_of(again.model), bias_of(whole.model))
    assert again.summary["preset_bias"] == whole.summary["preset_bias"]
    config = json.loads((whole.model / "config.json").read_text())
    assert config["num_experts_per_tok"] == 2


def test_checkpointed_layers_recompute_what_was_sampled(tmp_path: Path, biased: Path) -> None:
    losses = []
    for checkpointing in (False, True):
        options = trainer(**CONSTANT, activation_checkpointing=checkpointing, bf16=False)
        run = train(recipe(tmp_path, biased, **FADING, trainer=options, out=str(tmp_path / str(checkpointing))))
        losses.append([row["ce"] for row in rows(run.out, "step")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_each_step_has_its_values() -> None:
    model = random_moe("glm4_moe").train()
    objective = Objective(
        model,
        ObjectiveRecipe(bias_rate={0: 0.5, 1: 0.25}),
        RoutingRecipe(sample={"linear": {0: 1, 2: 0}}, top_k={0: 4, 1: 3, 2: 2}),
    )
    bias = next(tensor for name, tensor in model.named_buffers() if name.endswith(BIAS))
    bias.zero_()
    ids, moved = torch.arange(24).view(2, 12), []
    for step, (k, scale) in enumerate([(4, 1), (3, 0.5), (2, 0), (2, 0)]):
        objective.begin_step(step)
        assert objective.control.intervention.sample == scale
        with objective.recording():
            model(input_ids=ids, use_cache=False)
        objective.terms()
        counts = objective.take_counts()
        assert counts is not None
        assert counts.sum() == 24 * k
        before = bias.clone()
        objective.after_step(step)
        moved.append((bias - before).abs().max().item())
    assert moved[0] == 0  # all experts, all tokens: even
    assert moved[1:] == pytest.approx([0.25] * 3)
    model.eval()
    with objective.recording():
        model(input_ids=ids, use_cache=False)
    objective.terms()
    assert objective.take_counts().sum() == 24 * 2  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["mixtral", "granitemoeshared", "qwen2_moe"])
@pytest.mark.parametrize("implementation", ["smolmoe", "eager", "grouped_mm"])
def test_copies_give_the_same_with_any_number_of_experts(kind: str, implementation: str) -> None:
    model = moe_of(dense_llama(), kind)
    model.set_experts_implementation(implementation)
    ids = torch.arange(20).view(2, 10)
    expected = model(input_ids=ids).logits
    objective = Objective(model, ObjectiveRecipe(), RoutingRecipe(top_k={0: 4, 1: 3, 2: 2}))
    model.train()
    for step in range(3):
        objective.begin_step(step)
        torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_groups_are_chosen_whole_while_they_are_tied(tmp_path: Path) -> None:
    model = moe_of(dense_llama(), experts=8, top_k=2, granularity=2).train()
    routing = RoutingRecipe(tie_groups=9, sample={"linear": {0: 1, 4: 0}}, top_k={0: 8, 1: 4, 2: 2})
    objective = Objective(model, ObjectiveRecipe(), routing, granularity=2)
    for step, k in enumerate([8, 4, 2, 2]):
        objective.begin_step(step)
        with objective.recording():
            model(input_ids=torch.arange(20).view(2, 10), use_cache=False)
        assert objective.capture is not None
        for layer in objective.capture.layers:
            pairs = objective.capture.routing(layer).chosen().unflatten(1, (-1, 2)).sum(-1)
            assert set(pairs.unique().tolist()) <= {0, 2}
            assert pairs.sum() == 20 * k
        objective.terms()
    with pytest.raises(RequestError, match="3 of 8") as caught:
        Objective(model, ObjectiveRecipe(), RoutingRecipe(tie_groups=9, top_k={0: 3, 1: 2}), granularity=2)
    assert "multiples of 2" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("top_k", "problem"),
    [
        ({0: 5, 1: 2}, "5 of 4 experts"),
        ({0: 4, 1: 3}, "ends at 3"),
        ({"linear": {0: 9, 5: 2}}, "5 of 4 experts"),
        (3, "ends at 3"),
    ],
)
def test_numbers_of_experts_that_the_model_does_not_have(
    biased: Path, tmp_path: Path, top_k: Any, problem: str
) -> None:
    with pytest.raises(RequestError, match=problem) as caught:
        estimate(parse(TrainRecipe, recipe(tmp_path, biased, routing={"top_k": top_k})))
    assert caught.value.field == "routing.top_k"


def test_steps_with_more_experts_cost_more(biased: Path, tmp_path: Path) -> None:
    def flops(**changes: Any) -> float:
        return estimate(parse(TrainRecipe, recipe(tmp_path, biased, **changes))).flops

    model = random_moe("glm4_moe")
    expert = 3 * 24 * 32  # parameters of one, in one layer
    more = 6 * expert * 4 * 32 * (2 * 2 + 1 * 3)  # 6 FLOPs each, 4 sequences of 32: 2 steps with 4 experts, 3 with 3
    assert model.config.num_experts_per_tok == 2
    assert flops(routing={"top_k": {0: 4, 2: 3, 5: 2}}) - flops() == pytest.approx(more)


# -- biases before the first step --------------------------------------------------------------------------------------


def test_the_first_step_is_even(tmp_path: Path, biased: Path) -> None:
    preset = {"objective": {"preset_bias": 128}, "trainer": trainer(max_steps=1, logging_steps=1, bf16=False)}
    result = train(recipe(tmp_path, biased, **preset))
    found = result.summary["preset_bias"]
    assert found["tokens"] == 128  # the first step's own
    assert found["max_violation_before"][0] > 0.2
    assert found["max_violation"][0] <= TARGET
    assert rows(result.out, "window")[0]["max_violation"] == pytest.approx(found["max_violation"][0], abs=1e-4)
    plain = train(recipe(tmp_path, biased, trainer=preset["trainer"], out=str(tmp_path / "plain")))
    assert rows(plain.out, "window")[0]["max_violation"] == pytest.approx(found["max_violation_before"][0], abs=1e-4)
    assert rows(plain.out, "held_out")[0]["loss"] == rows(result.out, "held_out")[0]["loss"]  # measured before it
    assert bias_of(result.model).abs().max() > 0


def test_routers_that_no_bias_balances_are_named(tmp_path: Path, biased: Path, caplog: Any) -> None:
    zero = save(random_moe("glm4_moe"), tmp_path / "zero")
    edit_tensors(zero, lambda tensors: [tensors[name].zero_() for name in tensors if name.endswith("gate.weight")])
    result = train(recipe(tmp_path, zero, objective={"preset_bias": 100}, trainer=trainer(max_steps=1)))
    assert "biases of layers [1] were not set" in caplog.text
    assert result.summary["preset_bias"]["max_violation"] == [1.0]
    assert bias_of(result.model).abs().max() == 0


def test_biases_are_set_only_if_the_class_has_them(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no selection bias") as caught:
        train(recipe(tmp_path, moe_folder(tmp_path / "moe"), objective={"preset_bias": 100}))
    assert caught.value.field == "objective.preset_bias"
    with pytest.raises(RequestError, match="exclude each other"):
        parse(TrainRecipe, recipe(tmp_path, tmp_path, objective={"preset_bias": 100}, guidance={}))
