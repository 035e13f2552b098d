"""One expert per token whose gate is 2 sigmoid(x), 1 at x = 0, and not renormalised: the router has a gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import random_moe, save
from tests.training.runs import recipe, rows, trainer

from smolmoe.moe.gating import gate_spec
from smolmoe.moe.routing import find_routers
from smolmoe.recipe.train import ObjectiveRecipe, RoutingRecipe
from smolmoe.training.objective import Objective
from smolmoe.training.run import train

GATE = {"num_experts_per_tok": 1, "norm_topk_prob": False, "routed_scaling_factor": 2.0}
IDS = torch.arange(10, 74).view(2, 32)


def one_expert(kind: str = "glm4_moe", *, copies: bool = False) -> Any:
    """Gates 2 sigmoid(x); with `copies`, of equal experts under a zero router."""
    model = random_moe(kind, **GATE)
    with torch.no_grad():
        for name, parameter in model.named_parameters() if copies else ():
            if ".experts." in name:
                parameter.copy_(parameter[:1].expand_as(parameter).clone())
        for _, router in find_routers(model) if copies else ():
            router.weight.zero_()
    return model


@pytest.mark.parametrize("kind", ["glm4_moe", "deepseek_v3"])
def test_sampled_or_several_copies_give_the_same(kind: str) -> None:
    model = one_expert(kind, copies=True)
    expected = model(input_ids=IDS).logits
    schedule = {"sample": {"linear": {0: 1, 4: 0}}, "top_k": {0: 4, 1: 2, 2: 1}}
    objective = Objective(model.train(), ObjectiveRecipe(bias_rate=0.01), RoutingRecipe(**schedule))
    for step, k in enumerate([4, 2, 1, 1, 1]):
        objective.begin_step(step)
        with objective.recording():
            torch.testing.assert_close(model(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-4)
        objective.terms()
        counts = objective.take_counts()
        assert counts is not None
        assert counts.sum(-1).tolist() == [64 * k]
        assert (counts > 0).sum() == (4 if step < 4 else 1)  # sampling reaches all, then the zero router one
        objective.after_step(step)


@pytest.mark.parametrize("copies", [False, True])
def test_every_term_trains_the_router(tmp_path: Path, copies: bool) -> None:
    source = save(one_expert(copies=copies), tmp_path / "moe")
    terms = {"load_balance": 0.01, "z_loss": 0.001, "bias_rate": {0: 0.01, 4: 0.001}}
    values = {"objective": terms, "routing": {"sample": {"linear": {0: 1, 4: 0}}}}
    result = train(recipe(tmp_path, source, **values, trainer=trainer(max_steps=8)))
    norms = rows(result.out, "gradients")[0]["norms"]
    assert norms["ce"] > 0
    assert norms["load_balance"] > 0
    assert (norms["z_loss"] > 0) != copies  # logits of 0 are where it wants them
    window = rows(result.out, "window")[0]
    assert window["active_experts"] == 4
    assert "findings" not in result.summary
    spec = gate_spec(find_routers(one_expert())[0][1])
    assert not spec.fixed_gates


def test_preset_biases_even_its_first_step(tmp_path: Path) -> None:
    source = save(one_expert(), tmp_path / "moe")
    values = {"objective": {"preset_bias": 128}, "trainer": trainer(max_steps=1, logging_steps=1, bf16=False)}
    result = train(recipe(tmp_path, source, **values))
    assert result.summary["preset_bias"]["max_violation_before"][0] > 0.2
    assert rows(result.out, "window")[0]["max_violation"] < 0.1


def test_similarity_of_the_experts_is_followed(tmp_path: Path) -> None:
    result = train(recipe(tmp_path, save(one_expert(copies=True), tmp_path / "moe"), routing={"sample": True}))
    held_out = rows(result.out, "held_out")
    assert held_out[0]["expert_similarity"] == 1
    assert held_out[0]["expert_similarity_by_layer"] == [1]
    assert 0.5 < held_out[-1]["expert_similarity"] < 0.9999
    random = train(recipe(tmp_path, save(one_expert(), tmp_path / "random"), out=str(tmp_path / "other")))
    assert abs(rows(random.out, "held_out")[0]["expert_similarity"]) < 0.1
