"""One MoE layer: outputs and all gradients against a naive loop, routing against the stock routers of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.moe.dense import FAMILIES, D, moe_config
from torch import nn
from transformers.activations import ACT2FN

from smolmoe.moe.generic import SmolMoeBlock, SmolMoeConfig, SmolMoeRouter


def naive_route(router: SmolMoeRouter, token: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    """The chosen experts of one token and their weights."""
    logits = router.weight @ token
    scores = torch.sigmoid(logits) if router.scoring_func == "sigmoid" else torch.exp(logits) / torch.exp(logits).sum()
    ranking = (scores + router.e_score_correction_bias).tolist()
    chosen = sorted(range(len(ranking)), key=lambda e: -ranking[e])[: router.top_k]
    total = sum(scores[e] for e in chosen) if router.norm_topk_prob else 1.0
    return [(e, scores[e] / total) for e in chosen]


def naive_ffn(
    act: Callable[[torch.Tensor], torch.Tensor], token: torch.Tensor, gated: bool, tensors: list[torch.Tensor | None]
) -> torch.Tensor:
    up_weight, up_bias, down_weight, down_bias = tensors
    hidden = up_weight @ token + (0 if up_bias is None else up_bias)
    half = len(hidden) // 2
    hidden = act(hidden[:half]) * hidden[half:] if gated else act(hidden)
    return down_weight @ hidden + (0 if down_bias is None else down_bias)


def naive_block(block: SmolMoeBlock, x: torch.Tensor, config: SmolMoeConfig) -> torch.Tensor:
    act, experts, shared = ACT2FN[config.hidden_act], block.experts, block.shared_expert
    up = "gate_up_proj" if config.gated else "up_proj"
    names = (up, f"{up}_bias", "down_proj", "down_proj_bias")
    rows = []
    for token in x.reshape(-1, x.shape[-1]):
        row = torch.zeros_like(token)
        for e, weight in naive_route(block.gate, token):
            row = row + weight * naive_ffn(
                act,
                token,
                config.gated,
                [t[e] if (t := getattr(experts, n, None)) is not None else None for n in names],
            )
        if shared is not None:
            leaves = (getattr(shared, up), shared.down_proj)
            row = row + naive_ffn(act, token, config.gated, [t for leaf in leaves for t in (leaf.weight, leaf.bias)])
        rows.append(row)
    return torch.stack(rows).reshape(x.shape)


def outputs_and_gradients(
    block: SmolMoeBlock, x: torch.Tensor, run: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, torch.Tensor]:
    block.zero_grad()
    x = x.clone().requires_grad_()
    y = run(x)
    (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
    gradients = {name: p.grad.clone() for name, p in block.named_parameters()}
    return {"output": y.detach(), "input": x.grad, **gradients}


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("kind", ["gated", "gated_bias", "plain", "plain_bias"])
@pytest.mark.parametrize("top_k", [1, 2, 5])
@pytest.mark.parametrize(
    "options",
    [{}, {"scoring_func": "sigmoid", "shared_expert_intermediate_size": 6}, {"norm_topk_prob": False}],
    ids=["softmax", "sigmoid_shared", "not_renormalised"],
)
def test_outputs_and_all_gradients_are_those_of_the_naive_loop(
    implementation: str, kind: str, top_k: int, options: dict[str, Any]
) -> None:
    config = moe_config(
        FAMILIES["llama"],
        num_experts=5,
        num_experts_per_tok=top_k,
        moe_intermediate_size=8,
        gated=kind.startswith("gated"),
        mlp_bias=kind.endswith("bias"),
        hidden_act="gelu",
        **options,
    )
    config._experts_implementation = implementation
    torch.manual_seed(0)
    block = SmolMoeBlock(config)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    # The last expert gets no token, unless all are chosen; the first one is preferred.
    block.gate.e_score_correction_bias.copy_(torch.tensor([0.2, 0.0, 0.0, 0.0, -9.0]))
    x = torch.randn(2, 6, D)
    expected = outputs_and_gradients(block, x, lambda x: naive_block(block, x, config))
    actual = outputs_and_gradients(block, x, block)
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            actual[name], expected[name], rtol=2e-5, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    if top_k < 5:
        assert not actual["experts.down_proj"][4].any()
    if top_k > 1 or not config.norm_topk_prob:
        assert actual["gate.weight"].abs().max() > 1e-2


def test_dropout_acts_on_the_output_in_training_only() -> None:
    config = moe_config(FAMILIES["gpt2"], mlp_dropout=0.5, shared_expert_intermediate_size=8)
    config._experts_implementation = "eager"
    block = SmolMoeBlock(config)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(4, 16, D)
    full, dropped = block.eval()(x), block.train()(x)
    alive = dropped != 0
    assert 0.4 < alive.float().mean() < 0.6
    torch.testing.assert_close(dropped[alive], 2 * full[alive])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_routes_bit_for_bit_as_the_stock_routers(scoring: str, dtype: torch.dtype) -> None:
    from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeConfig, Glm4MoeTopkRouter
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeConfig, Qwen3MoeTopKRouter

    sizes = {"hidden_size": D, "num_experts_per_tok": 3, "norm_topk_prob": True}
    stock = (
        Qwen3MoeTopKRouter(Qwen3MoeConfig(num_experts=8, **sizes))
        if scoring == "softmax"
        else Glm4MoeTopkRouter(Glm4MoeConfig(n_routed_experts=8, n_group=1, topk_group=1, **sizes))
    )
    ours = SmolMoeRouter(moe_config(FAMILIES["llama"], num_experts=8, num_experts_per_tok=3, scoring_func=scoring))
    torch.manual_seed(0)
    weight, x = torch.randn(8, D).to(dtype), torch.randn(64, D).to(dtype)
    stock.weight.data, ours.weight.data = weight, weight
    if scoring == "sigmoid":
        stock.e_score_correction_bias.copy_(bias := 0.1 * torch.randn(8))
        ours.e_score_correction_bias.copy_(bias)
    (logits, weights, chosen), (ours_logits, ours_weights, ours_chosen) = stock(x), ours(x)
    assert torch.equal(ours_logits, logits)
    order, ours_order = chosen.argsort(-1), ours_chosen.argsort(-1)
    assert torch.equal(ours_chosen.gather(-1, ours_order), chosen.gather(-1, order))
    assert ours_weights.dtype == weights.dtype
    # The order of the chosen experts, and with it the last bit of their sum, is free.
    torch.testing.assert_close(ours_weights.gather(-1, ours_order), weights.gather(-1, order), rtol=1e-6, atol=0)
