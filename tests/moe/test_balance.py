"""Balance statistics at their ends and by hand; balancing by bias evens out an uneven router."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import random_moe

from smolmoe.moe.balance import (
    balance_statistics,
    choice_counts,
    count_choices,
    has_selection_bias,
    load_entropy,
    load_variation,
    max_violation,
    update_selection_bias,
)
from smolmoe.moe.routing import Routing, RoutingCapture, find_routers

IDS = torch.arange(10, 74).view(2, 32)


def test_statistics_at_perfect_balance_and_at_collapse() -> None:
    even = balance_statistics(torch.full((3, 8), 5))
    assert even == {
        "balance": pytest.approx(1),
        "variation": pytest.approx(0),
        "max_violation": pytest.approx(0),
        "active_experts": 24,
        "dead_experts": 0,
    }
    collapsed = balance_statistics(torch.eye(8)[:3] * 100)
    assert collapsed == {
        "balance": pytest.approx(0),
        "variation": pytest.approx(math.sqrt(7)),
        "max_violation": pytest.approx(7),
        "active_experts": 3,
        "dead_experts": 21,
    }


def test_statistics_by_hand_are_means_over_layers() -> None:
    counts = torch.tensor([[3, 1], [1, 1]])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
    assert load_entropy(counts).item() == pytest.approx((entropy + 1) / 2)
    assert load_variation(counts).item() == pytest.approx(0.25)
    assert max_violation(counts).item() == pytest.approx(0.25)
    loads = counts / counts.sum(-1, keepdim=True)
    assert balance_statistics(loads) == pytest.approx(balance_statistics(counts))


def test_one_expert_is_balanced_and_no_choices_give_no_nan() -> None:
    assert load_entropy(torch.tensor([[7]])).item() == 1
    assert all(math.isfinite(value) for value in balance_statistics(torch.zeros(2, 4)).values())


def test_choices_without_weight_are_not_counted() -> None:
    weights = torch.tensor([[0.6, 0.4], [1.0, 0.0], [0.0, 0.0]])
    routing = Routing(torch.zeros(3, 4), weights, torch.tensor([[0, 1], [3, 1], [2, 0]]), torch.zeros(3, 4))
    assert choice_counts(routing).tolist() == [1, 1, 0, 1]
    stacked = count_choices(torch.stack([routing.indices, routing.indices.flip(0)]), weights.expand(2, -1, -1), 4)
    assert stacked.tolist() == [[1, 1, 0, 1], [1, 0, 1, 1]]


def test_only_some_routers_have_a_selection_bias() -> None:
    assert has_selection_bias(random_moe("glm4_moe"))
    assert not has_selection_bias(random_moe("mixtral"))


def test_the_bias_moves_towards_the_mean_load() -> None:
    bias = torch.zeros(4)
    update_selection_bias(bias, torch.tensor([0.4, 0.25, 0.2, 0.15]), 0.001)
    torch.testing.assert_close(bias, torch.tensor([-0.001, 0, 0.001, 0.001]))
    update_selection_bias(bias, torch.full((4,), 0.25), 0.1)
    torch.testing.assert_close(bias, torch.tensor([-0.001, 0, 0.001, 0.001]))


@torch.no_grad()
def test_loss_free_balancing_evens_out_an_uneven_router() -> None:
    model = random_moe("glm4_moe", n_routed_experts=8)
    (layer, router), *_ = find_routers(model)
    router.weight[0] = router.weight[1:3].mean(0)  # rarely the best, with its neighbours often beside it
    seen = []
    for _ in range(100):
        with RoutingCapture(model) as capture:
            model(IDS)
        counts = choice_counts(capture.routing(layer))
        seen.append(max_violation(counts).item())
        update_selection_bias(router.e_score_correction_bias, counts, 0.02)
    assert seen[0] > 0.8
    assert max(seen[-5:]) < 0.5 * seen[0]
