"""Routers are found in every MoE class, and what is counted of their decisions is right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import FIRST_DENSE, MOE_CONFIGS, dense_llama, hash_routed, moe_of, random_moe

from smolmoe.errors import SourceError
from smolmoe.moe.routing import (
    Routing,
    RoutingCapture,
    dead_experts,
    expert_load,
    find_routers,
    flipped,
    incomplete_groups,
    margin,
    tied,
    unread_routers,
)

IDS = torch.arange(10, 34).view(2, 12)


def routing_of(indices: list[list[int]], scores: list[list[float]] | None = None, experts: int = 4) -> Routing:
    chosen = torch.tensor(indices)
    logits = torch.tensor(scores) if scores else torch.zeros(len(indices), experts)
    return Routing(logits, torch.full(chosen.shape, 0.5), chosen, logits)


@pytest.mark.parametrize("kind", MOE_CONFIGS)
def test_routers_are_found_and_captured(kind: str) -> None:
    model = random_moe(kind)
    routers = find_routers(model)
    layers = [1] if kind in FIRST_DENSE else [0, 1]
    assert [layer for layer, _ in routers] == layers
    with torch.no_grad(), RoutingCapture(model) as capture:
        model(IDS)
    assert capture.layers == layers
    routing = capture.routing(layers[-1])
    assert routing.logits.shape == (24, 4)
    assert routing.indices.shape == routing.weights.shape == (24, 2)
    # what was captured is what the router computes, and its own choice agrees with its scores
    assert bool((margin(routing) >= 0).all())
    model(IDS)
    assert len(capture.calls(layers[0])) == 1


def test_the_generic_model_is_found_too() -> None:
    from smolmoe.moe.generic import SmolMoeConfig, SmolMoeForCausalLM

    config = SmolMoeConfig(text_config=dense_llama().config.to_dict(), num_experts=4, moe_layers=[1])
    model = SmolMoeForCausalLM(config).eval()
    with torch.no_grad(), RoutingCapture(model) as capture:
        expected = model(IDS, output_router_logits=True).router_logits
    assert capture.layers == [1]
    assert torch.equal(capture.routing(1).logits, expected[0])


def test_captured_logits_are_those_that_transformers_records() -> None:
    model = random_moe("mixtral")
    with torch.no_grad(), RoutingCapture(model) as capture:
        recorded = model(IDS, output_router_logits=True).router_logits
    for layer in capture.layers:
        assert torch.equal(capture.routing(layer).logits, recorded[layer])


def test_calls_are_kept_apart_and_joined_and_padding_is_dropped() -> None:
    model = random_moe("qwen3_moe")
    mask = torch.ones_like(IDS)
    mask[0, 8:] = 0
    with torch.no_grad(), RoutingCapture(model) as capture:
        model(IDS[:1])
        capture.keep = mask.flatten().bool()
        model(IDS, attention_mask=mask)
        assert [len(call.indices) for call in capture.calls(0)] == [12, 20]
        assert len(capture.routing(0).logits) == 32
        assert torch.equal(capture.calls(0)[1].logits[8:], capture.routing(0).logits[20:])
        capture.clear()
        assert capture.calls(0) == []


def test_a_selection_bias_decides_the_scores() -> None:
    model = random_moe("glm4_moe")
    router = dict(find_routers(model))[1]
    router.e_score_correction_bias.copy_(torch.tensor([0.0, 5.0, 0.0, 5.0]))
    with torch.no_grad(), RoutingCapture(model) as capture:
        model(IDS)
    routing = capture.routing(1)
    assert expert_load(routing).tolist() == [0.0, 0.5, 0.0, 0.5]
    assert bool((margin(routing) > 0).all())
    assert torch.allclose(routing.scores, routing.logits.sigmoid() + router.e_score_correction_bias)


def test_gradients_reach_the_router_through_what_was_captured() -> None:
    model = random_moe("mixtral")
    with RoutingCapture(model) as capture:
        model(IDS)
    capture.routing(0).logits.square().mean().backward()
    assert dict(find_routers(model))[0].weight.grad.abs().sum() > 0


def test_a_dense_model_has_no_routers() -> None:
    assert find_routers(dense_llama()) == []
    with pytest.raises(SourceError, match="dense"):
        RoutingCapture(dense_llama())


def test_routers_that_are_not_recorded_are_named() -> None:
    """DeepSeek V4's first layers choose by a table of tokens, of which its class records nothing."""
    with pytest.raises(SourceError, match="DeepseekV4HashRouter"):
        RoutingCapture(hash_routed("hash_moe", "hash_moe"))
    mixed = hash_routed("hash_moe", "moe")
    assert [layer for layer, _ in find_routers(mixed)] == [1]
    assert unread_routers(mixed) == {0: "DeepseekV4HashRouter"}
    assert unread_routers(random_moe("mixtral")) == unread_routers(dense_llama()) == {}


def test_a_router_that_returns_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_moe("mixtral")
    router: Any = find_routers(model)[0][1]
    forward = router.forward
    monkeypatch.setattr(router, "forward", lambda x: forward(x)[:2])
    with torch.no_grad(), RoutingCapture(model), pytest.raises(SourceError, match="MixtralTopKRouter"):
        model(IDS)


def test_load_and_dead_experts() -> None:
    routing = routing_of([[0, 1], [0, 3], [3, 0]])
    assert expert_load(routing).tolist() == pytest.approx([3 / 6, 1 / 6, 0, 2 / 6])
    assert dead_experts(routing) == (2,)


def test_incomplete_groups() -> None:
    whole, split, both = [0, 1, 2, 3], [0, 1, 2, 4], [6, 7, 4, 5]
    routing = routing_of([whole, split, both, [1, 0, 3, 2]], experts=8)
    assert incomplete_groups(routing, 2) == 0.25
    assert incomplete_groups(routing, 4) == 0.25
    assert incomplete_groups(routing, 1) == 0


def test_flips_ignore_the_order_of_experts() -> None:
    assert flipped(routing_of([[0, 1], [2, 3]]), routing_of([[1, 0], [2, 1]])).tolist() == [False, True]


def test_ties_and_margins() -> None:
    routing = routing_of([[0, 1], [0, 1], [0, 1]], [[3.0, 2, 1, 0], [3.0, 2, 2, 0], [2.0, 2, 1, 0]])
    assert tied(routing).tolist() == [False, True, False]  # between chosen ones a tie decides nothing
    assert margin(routing).tolist() == [1, 0, 1]


def test_tied_rows_within_a_group_are_no_ties() -> None:
    model = moe_of(dense_llama(), top_k=2, granularity=2)
    with torch.no_grad(), RoutingCapture(model) as capture:
        model(IDS)
    assert not tied(capture.routing(0)).any()
    assert incomplete_groups(capture.routing(0), 2) == 0
