"""What training relies on: router gradients, the load-balancing loss, recorded logits, gradient checkpointing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.moe.dense import FAMILIES, LAYERS, build_dense, padded_batch, upcycle

from smolmoe.moe.generic import SmolMoeBlock, SmolMoeForCausalLM, SmolMoeRouter


def router_gradients(moe: SmolMoeForCausalLM, **options: Any) -> list[torch.Tensor]:
    batch = padded_batch()
    moe.zero_grad()
    moe(**batch, labels=batch["input_ids"], **options).loss.backward()
    return [router.weight.grad.clone() for router in moe.routers()]


def spread_experts(moe: SmolMoeForCausalLM) -> None:
    torch.manual_seed(2)
    for block in moe.modules():
        if isinstance(block, SmolMoeBlock):
            block.experts.down_proj.data += 0.1 * torch.randn_like(block.experts.down_proj)


def test_the_router_learns_once_experts_differ() -> None:
    moe = upcycle(build_dense(FAMILIES["llama"]), FAMILIES["llama"])
    assert max(g.abs().max() for g in router_gradients(moe)) < 1e-6  # copies: no choice is better than another
    spread_experts(moe)
    assert min(g.abs().max() for g in router_gradients(moe)) > 1e-4


def hand_aux_loss(logits: tuple[torch.Tensor, ...], mask: torch.Tensor, top_k: int, sigmoid: bool) -> torch.Tensor:
    """E * sum_e f_e * P_e, token by token."""
    tokens = [row for layer in logits for row, keep in zip(layer, mask.flatten().tolist(), strict=True) if keep]
    n_experts = logits[0].shape[1]
    chosen, probability = [0.0] * n_experts, [torch.zeros(())] * n_experts
    for row in tokens:
        scores = torch.sigmoid(row) if sigmoid else torch.exp(row)
        scores = scores / scores.sum()
        for e in range(n_experts):
            probability[e] = probability[e] + scores[e] / len(tokens)
        for e in sorted(range(n_experts), key=lambda e: -scores[e].item())[:top_k]:
            chosen[e] += 1 / len(tokens)
    return n_experts * sum(f * p for f, p in zip(chosen, probability, strict=True))


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_the_aux_loss_is_the_formula_and_in_the_graph(scoring: str) -> None:
    family = FAMILIES["llama"]
    moe = upcycle(build_dense(family), family, scoring_func=scoring, router_aux_loss_coef=0.5)
    batch = padded_batch()
    with_aux = moe(**batch, labels=batch["input_ids"], output_router_logits=True)
    without = moe(**batch, labels=batch["input_ids"])
    assert [tuple(layer.shape) for layer in with_aux.router_logits] == [(27, 4)] * LAYERS
    expected = hand_aux_loss(with_aux.router_logits, batch["attention_mask"], 2, scoring == "sigmoid")
    torch.testing.assert_close(with_aux.aux_loss, expected)
    torch.testing.assert_close(with_aux.loss, without.loss + 0.5 * expected)
    weights = [router.weight for router in moe.routers()]
    hand = torch.autograd.grad(0.5 * expected, weights, retain_graph=True)
    assert min(g.abs().max() for g in hand) > 1e-4
    # The experts are copies, so the language-model loss gives the routers nothing: all they get is the aux loss.
    for actual, wanted in zip(router_gradients(moe, output_router_logits=True), hand, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-6)


def test_the_aux_loss_is_that_of_stock_mixtral() -> None:
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    moe = upcycle(build_dense(FAMILIES["llama"]), FAMILIES["llama"])
    batch = padded_batch()
    for mask in (batch["attention_mask"], None):
        out = moe(batch["input_ids"], attention_mask=mask, output_router_logits=True)
        torch.testing.assert_close(out.aux_loss, load_balancing_loss_func(out.router_logits, 4, 2, mask))
        assert all(router.logits_sink is None for router in moe.routers())


def test_router_logits_of_a_replaced_forward_are_recorded() -> None:
    moe = upcycle(build_dense(FAMILIES["llama"]), FAMILIES["llama"])
    router = moe.routers()[0]
    stock = router.forward
    router.forward = lambda x: (stock(x)[0] + 1, *stock(x)[1:])
    batch = padded_batch()
    replaced = moe(**batch, output_router_logits=True).router_logits[0]
    del router.forward
    torch.testing.assert_close(replaced - 1, moe(**batch, output_router_logits=True).router_logits[0])
    assert moe.can_record_outputs["router_logits"].target_class is SmolMoeRouter


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_gradient_checkpointing_gives_the_same_gradients(name: str) -> None:
    moe = upcycle(build_dense(FAMILIES[name]), FAMILIES[name], router_aux_loss_coef=0.1)
    spread_experts(moe)
    batch = padded_batch()

    def gradients() -> dict[str, torch.Tensor]:
        torch.manual_seed(0)  # for dropout
        moe.zero_grad()
        out = moe.train()(**batch, labels=batch["input_ids"], output_router_logits=True, use_cache=False)
        out.loss.backward()
        assert len(out.router_logits) == LAYERS
        return {name: p.grad.clone() for name, p in moe.named_parameters()}

    expected = gradients()
    moe.activation_checkpointing_enable({"use_reentrant": False})
    assert moe.is_activation_checkpointing
    actual = gradients()
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, msg=lambda m, k=key: f"{k}: {m}")


def test_one_step_parts_the_experts() -> None:
    moe = upcycle(build_dense(FAMILIES["llama"]), FAMILIES["llama"])
    optimizer = torch.optim.SGD(moe.parameters(), lr=0.1)
    router_gradients(moe)
    optimizer.step()
    experts = moe.lm.model.layers[0].mlp.experts.down_proj
    assert all((experts[a] - experts[b]).abs().max() > 1e-5 for a in range(4) for b in range(a))
    assert F.cosine_similarity(experts[0].flatten(), experts[1].flatten(), dim=0) > 0.9
