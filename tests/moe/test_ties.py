"""Tied rows keep the groups of a split FFN whole while everything trains; without ties they part."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import dense_llama, moe_of, random_moe

from smolmoe.errors import RequestError
from smolmoe.moe.control import control_routers
from smolmoe.moe.gating import Intervention
from smolmoe.moe.routing import RoutingCapture, find_routers, incomplete_groups
from smolmoe.moe.ties import GroupTies

G = 4
IDS = torch.randint(3, 300, (4, 32), generator=torch.Generator().manual_seed(0))


def trained(act: Intervention | None, tie: bool) -> tuple[Any, GroupTies]:
    model = moe_of(dense_llama(), experts=16, top_k=8, granularity=G).train()
    if act is not None:
        control_routers(model, act)
    ties = GroupTies(model, G)
    assert ties.spread() == 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(6):
        model(IDS, labels=IDS).loss.backward()
        if tie:
            ties.apply()
        optimizer.step()
        optimizer.zero_grad()
    return model, ties


def incomplete(model: Any) -> float:
    with torch.no_grad(), RoutingCapture(model) as capture:
        model(IDS)
    return max(incomplete_groups(capture.routing(layer), G) for layer in capture.layers)


@pytest.mark.parametrize("act", [None, Intervention(noise="learned", expert_dropout=0.2, granularity=G)], ids=str)
def test_ties_keep_groups_whole(act: Intervention | None) -> None:
    model, ties = trained(act, tie=True)
    assert ties.spread() == 0
    assert incomplete(model) == 0
    rows = find_routers(model)[0][1].weight
    assert len(rows.unique(dim=0)) == 4  # the groups themselves differ


def test_without_ties_they_part() -> None:
    model, ties = trained(None, tie=False)
    assert ties.spread() > 1e-3
    assert incomplete(model) > 0.05


def test_gradients_and_biases_become_the_mean_of_their_group() -> None:
    model = random_moe("glm4_moe")
    ((_, router),) = find_routers(model)
    router.e_score_correction_bias.copy_(torch.tensor([1.0, 3.0, 0.0, 1.0]))
    router.weight.grad = gradient = torch.randn_like(router.weight)
    first = gradient[:2].mean(0)
    GroupTies(model, 2).apply()
    torch.testing.assert_close(router.weight.grad[:2], first.expand(2, -1))
    assert router.e_score_correction_bias.tolist() == [2, 2, 0.5, 0.5]


def test_spread_is_relative_to_the_row() -> None:
    model = random_moe("glm4_moe")
    ((_, router),) = find_routers(model)
    with torch.no_grad():
        router.weight.fill_(2.0)
        router.weight[1] = 3.0
    assert GroupTies(model, 2).spread() == pytest.approx(0.5)
    assert GroupTies(model, 1).spread() == 0
    with pytest.raises(RequestError, match="granularity=3"):
        GroupTies(model, 3)
