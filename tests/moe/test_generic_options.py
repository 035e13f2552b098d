"""Dynamic top-k and expert capacity of the generic model: values by hand, and outputs against the plain reference."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.moe.dense import FAMILIES, D, build_dense, moe_config, padded_batch, upcycle
from torch import nn
from transformers.activations import ACT2FN

from smolmoe.moe.generic import (
    SmolMoeBlock,
    SmolMoeConfig,
    SmolMoeForCausalLM,
    SmolMoeRouter,
    first_to_reach,
    within_capacity,
)
from smolmoe.moe.reference import Ffn, routed_output

E, K = 4, 3
LLAMA = FAMILIES["llama"]
OPTIONS: list[dict[str, Any]] = [
    {"router_top_p": 0.6},
    {"router_top_p": 0.6, "norm_topk_prob": False, "scoring_func": "sigmoid"},
    {"capacity_factor": 0.7},
    {"capacity_factor": 0.7, "router_top_p": 0.8},
]


def block_of(implementation: str, **options: Any) -> SmolMoeBlock:
    config = moe_config(LLAMA, num_experts=E, num_experts_per_tok=K, moe_intermediate_size=8, **options)
    config._experts_implementation = implementation
    torch.manual_seed(0)
    block = SmolMoeBlock(config)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block


def router_of(scores: list[list[float]], **options: Any) -> tuple[SmolMoeRouter, torch.Tensor]:
    """A router whose token t has these probabilities, and the tokens."""
    router = SmolMoeRouter(moe_config(LLAMA, num_experts=E, num_experts_per_tok=K, **options))
    router.weight.data = torch.eye(E, D)
    x = torch.zeros(len(scores), D)
    x[:, :E] = torch.tensor(scores).log()
    return router, x


def test_the_fewest_experts_that_reach_top_p() -> None:
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.7, 0.2, 0.1], [0.2, 0.2, 0.2]])
    assert first_to_reach(0.5, probabilities).tolist() == [[True, False, False]] * 2 + [[True] * 3]
    assert first_to_reach(0.75, probabilities)[:2].tolist() == [[True, True, False]] * 2
    assert first_to_reach(1.0, probabilities)[2].tolist() == [True] * 3


def test_dynamic_top_k_by_hand() -> None:
    router, x = router_of([[0.7, 0.1, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]], router_top_p=0.65)
    _, weights, chosen = router(x)
    assert chosen.tolist() == [[0, 2, 1], [3, 2, 1]]
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0, 0], [4 / 7, 3 / 7, 0]]))
    router.norm_topk_prob = False
    torch.testing.assert_close(router(x)[1], torch.tensor([[0.7, 0, 0], [0.4, 0.3, 0]]))


def test_capacity_is_given_out_in_token_order() -> None:
    chosen = torch.tensor([[0, 1], [0, 2], [1, 0], [0, 1]])
    used = torch.ones_like(chosen, dtype=torch.bool)
    expected = [[True, True], [True, True], [True, False], [False, False]]  # ceil(.8 * 8 / 4) = 2 an expert
    assert within_capacity(0.8, chosen, used, 4).tolist() == expected
    used[0, 0] = False  # takes no place, so expert 0 has one more
    assert within_capacity(0.8, chosen, used, 4).tolist() == [[False, True], [True, True], [True, True], [False, False]]
    assert within_capacity(4.0, chosen, used | True, 4).all()


def test_a_dropped_choice_has_no_weight_and_the_others_keep_theirs() -> None:
    router, x = router_of([[0.6, 0.3, 0.06, 0.04]] * 3, capacity_factor=0.5)  # ceil(.5 * 9 / 4) = 2 an expert
    _, weights, _ = router(x)
    torch.testing.assert_close(weights[:2], torch.tensor([[0.6, 0.3, 0.06]] * 2) / 0.96)
    assert weights[2].tolist() == [0, 0, 0]
    # with priority by token, a later token changes nothing for an earlier one
    assert torch.equal(router(torch.cat([x, x]))[1][:2], weights[:2])


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_outputs_and_gradients_are_those_of_the_reference(implementation: str, options: dict[str, Any]) -> None:
    block = block_of(implementation, **options)
    x = torch.randn(2, 9, D)

    def reference(x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, D)
        _, weights, chosen = block.gate(flat)
        # A slot of weight 0 is no choice: it is moved to an expert that does not exist.
        chosen = torch.where(weights == 0, -1, chosen)
        halves = [weight.chunk(2) for weight in block.experts.gate_up_proj]
        experts = [Ffn(up, down, gate) for (gate, up), down in zip(halves, block.experts.down_proj, strict=True)]
        return routed_output(flat, weights, chosen, experts, ACT2FN["silu"]).reshape(x.shape)

    def outcome(run: Any) -> dict[str, torch.Tensor]:
        block.zero_grad()
        given = x.clone().requires_grad_()
        output = run(given)
        (output * torch.linspace(-1, 1, output.numel()).reshape(output.shape)).sum().backward()
        gradients = {name: p.grad.clone() for name, p in block.named_parameters()}
        return {"output": output.detach(), "input": given.grad, **gradients}

    weights = block.gate(x)[1]
    assert 0.1 < (weights == 0).float().mean() < 0.7
    expected, actual = outcome(reference), outcome(block)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=2e-5, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert actual["gate.weight"].abs().max() > 1e-3


def test_without_the_options_nothing_changes() -> None:
    plain, all_of_it = block_of("eager"), block_of("eager", router_top_p=1.0, capacity_factor=float(E))
    x = torch.randn(2, 9, D)
    assert torch.equal(plain(x), all_of_it(x))
    old = {
        key: value
        for key, value in moe_config(LLAMA).to_dict().items()
        if key not in ("router_top_p", "capacity_factor")
    }
    assert SmolMoeConfig(**old).router_top_p is None
    assert SmolMoeConfig(**old).capacity_factor is None


def test_training_and_evaluation_are_the_same_model() -> None:
    block = block_of("eager", router_top_p=0.6, capacity_factor=0.7)
    x = torch.randn(2, 9, D)
    assert torch.equal(block.train()(x), block.eval()(x))


def test_options_survive_saving(tmp_path: Path) -> None:
    moe = upcycle(build_dense(LLAMA), LLAMA, router_top_p=0.6, capacity_factor=0.7)
    moe.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (saved["router_top_p"], saved["capacity_factor"]) == (0.6, 0.7)
    again = SmolMoeForCausalLM.from_pretrained(tmp_path).eval()
    batch = padded_batch()
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, moe(**batch).logits)
        again.set_experts_implementation("eager")
    assert again.generate(**batch, max_new_tokens=3, do_sample=False).shape[1] == batch["input_ids"].shape[1] + 3


def test_capacity_warns_that_sequences_depend_on_their_batch(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        moe = upcycle(build_dense(LLAMA), LLAMA, capacity_factor=0.123)
        upcycle(build_dense(LLAMA), LLAMA, capacity_factor=0.123)
    finally:
        logger.removeHandler(caplog.handler)
    warnings = [r for r in caplog.records if "not causal across a batch" in r.getMessage()]
    assert len(warnings) == 1
    ids = padded_batch()["input_ids"]
    with torch.no_grad():
        assert not torch.allclose(moe(ids[2:]).logits, moe(ids).logits[2:])


@pytest.mark.parametrize(
    "bad", [{"router_top_p": 0.0}, {"router_top_p": 1.5}, {"capacity_factor": 0.0}, {"capacity_factor": -1.0}], ids=str
)
def test_values_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        moe_config(LLAMA, **bad)
