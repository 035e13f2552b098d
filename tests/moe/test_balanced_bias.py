"""Biases that balance a text's load exactly on its recorded logits, and routers that no bias balances."""

from __future__ import annotations

import pytest
import torch

from smolmoe.moe.balance import count_choices, max_violation
from smolmoe.moe.balanced_bias import TARGET, find_balanced_bias
from smolmoe.moe.gating import GateSpec, route

D = 16
SPECS = {
    "softmax": GateSpec(8, 2),
    "sigmoid, top-1": GateSpec(8, 1, scoring="sigmoid", renormalise=False, scale=2.0),
    "groups": GateSpec(8, 2, scoring="sigmoid", groups=4, top_groups=2),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("std", [0.002, 0.2])
def test_the_router_itself_is_even_with_it(spec: GateSpec, std: float) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2000, D) + torch.randn(D), torch.randn(8, D) * std, torch.rand(8) * std
    logits = route(x, weight, bias, spec)[0]
    found = find_balanced_bias(logits, bias, spec)

    def violation(bias: torch.Tensor) -> float:
        _, gates, chosen = route(x, weight, bias, spec)
        return max_violation(count_choices(chosen, gates, 8)).item()

    assert found.before == pytest.approx(violation(bias))
    assert found.before > 0.5
    assert found.after == pytest.approx(violation(found.bias))
    assert found.after <= TARGET
    assert found.bias.mean() == pytest.approx(bias.mean().item(), abs=1e-6)


@pytest.mark.parametrize("rows", [torch.zeros(8, D), torch.ones(8, D)], ids=["zero", "equal"])
def test_equal_rows_cannot_be_balanced(rows: torch.Tensor) -> None:
    torch.manual_seed(0)
    spec = SPECS["sigmoid, top-1"]
    logits, bias = torch.randn(100, D) @ rows.T, torch.zeros(8)
    found = find_balanced_bias(logits, bias, spec)
    assert found.same_for_all
    assert torch.equal(found.bias, bias)
    assert (found.before, found.after, found.updates) == (7, 7, 0)


def test_groups_with_one_row_keep_one_bias() -> None:
    """Shards of one FFN, G = 2, are chosen together only if their biases are equal."""
    torch.manual_seed(0)
    weight = torch.randn(4, D).repeat_interleave(2, dim=0) * 0.1
    logits = (torch.randn(2000, D) + torch.randn(D)) @ weight.T
    found = find_balanced_bias(logits, torch.zeros(8), GateSpec(8, 2))
    assert found.before > TARGET >= found.after
    assert torch.equal(found.bias[::2], found.bias[1::2])
