"""FLOPs are counted as the sizes say, and experts that compute without having been chosen are seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import FFN, SIZES, VOCABULARY, dense_gpt2, dense_llama, random_moe
from torch.utils.flop_counter import FlopCounterMode

import smolmoe
from smolmoe.errors import RequestError
from smolmoe.evaluation.flops import count_flops, counter
from smolmoe.moe.kernels.register import set_experts

LENGTH = 8
WIDTH, LAYERS, HEADS = (
    SIZES["hidden_size"],
    SIZES["num_hidden_layers"],
    SIZES["num_attention_heads"] * SIZES["head_dim"],
)


def by_hand(active_ffn: int, router: int, positions: int) -> dict[str, float]:
    """2 FLOPs a multiplied weight; 4 a position and channel of attention."""
    keys = SIZES["num_key_value_heads"] * SIZES["head_dim"]
    found = {
        "attention": 2 * LAYERS * WIDTH * (2 * HEADS + 2 * keys),
        "scores": 4 * LAYERS * HEADS * positions,
        "experts" if router else "ffn": 2 * LAYERS * active_ffn,
        "head": 2 * WIDTH * VOCABULARY,
    }
    return found | ({"router": 2 * LAYERS * router} if router else {})


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm", "smolmoe"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_two_of_four_experts_compute_and_every_part_is_what_the_config_says(
    implementation: str, dtype: torch.dtype
) -> None:
    smolmoe.register()
    model = random_moe("mixtral").to(dtype)
    model.set_experts_implementation(implementation)
    counts = count_flops(model, length=LENGTH)
    expert = 3 * WIDTH * FFN
    assert counts.prefill.expected == by_hand(2 * expert, 4 * WIDTH, LENGTH)
    assert counts.decode.expected == by_hand(2 * expert, 4 * WIDTH, LENGTH + 1)
    assert counts.prefill.parts == counts.prefill.expected
    # a single token's weighted sum may be a product, too
    assert counts.decode.parts == pytest.approx(counts.decode.expected, rel=0.02)
    assert counts.train is not None
    assert counts.train.total == counts.train.expected_total
    products = counts.prefill.total - counts.prefill.parts["scores"]
    assert counts.train.total == 3 * products + 3.5 * counts.prefill.parts["scores"]
    assert counts.experts is not None
    assert (counts.experts.experts, counts.experts.top_k, counts.experts.only_chosen) == (4, 2, True)
    assert counts.experts.prefill == counts.experts.train == 2
    assert counts.experts.only_chosen is True


def every_expert(self: Any, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """What a mixture computes, with every expert computing for every token."""
    gates = torch.zeros(len(hidden), self.num_experts, dtype=weights.dtype).scatter(1, index, weights)
    out = torch.zeros_like(hidden)
    for expert in range(self.num_experts):
        gate, up = torch.nn.functional.linear(hidden, self.gate_up_proj[expert]).chunk(2, dim=-1)
        one = torch.nn.functional.linear(self.act_fn(gate) * up, self.down_proj[expert])
        out = out + (one * gates[:, expert, None]).to(out.dtype)
    return out


def test_a_model_that_computes_all_experts_is_found_out() -> None:
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    model = random_moe("mixtral")
    ids = torch.arange(LENGTH)[None]
    with torch.no_grad():
        expected = model(ids).logits
    ALL_EXPERTS_FUNCTIONS.register("every_expert", every_expert)
    try:
        model.set_experts_implementation("every_expert")
        with torch.no_grad():
            torch.testing.assert_close(model(ids).logits, expected, atol=1e-4, rtol=1e-4)
        work = count_flops(model, length=LENGTH).experts
    finally:
        del ALL_EXPERTS_FUNCTIONS._global_mapping["every_expert"]
    assert work is not None
    assert (work.prefill, work.decode, work.train) == (4, 4, 4)
    assert not work.only_chosen


def test_torch_alone_takes_grouped_products_and_attention_for_nothing() -> None:
    """What the formulas are for; once torch has its own, they can go."""
    model = random_moe("mixtral")
    model.set_experts_implementation("grouped_mm")
    ids = torch.arange(LENGTH)[None]
    with torch.no_grad(), FlopCounterMode(display=False) as alone:
        model(ids)
    with torch.no_grad(), counter() as ours:
        model(ids)
    expected = by_hand(2 * 3 * WIDTH * FFN, 4 * WIDTH, LENGTH)
    assert ours.get_total_flops() == LENGTH * sum(expected.values())
    missed = expected["experts"] + expected["scores"]
    assert ours.get_total_flops() - alone.get_total_flops() == LENGTH * missed


def test_the_fallback_of_transformers_is_counted_row_by_row() -> None:
    import transformers.integrations.moe  # noqa: F401  # defines the operator

    x, weight = torch.randn(6, 8, requires_grad=True), torch.randn(3, 8, 5, requires_grad=True)
    ends = torch.tensor([2, 2, 4], dtype=torch.int32)  # two rows belong to no group
    with counter() as count:
        torch.ops.transformers.grouped_mm_fallback(x, weight, ends).sum().backward()
    assert count.get_total_flops() == 3 * 2 * 4 * 8 * 5


@pytest.mark.parametrize("model_type", ["qwen2_moe", "granitemoeshared", "glm4_moe", "olmoe"])
def test_shared_experts_and_dense_layers_are_parts_of_their_own(model_type: str) -> None:
    counts = count_flops(random_moe(model_type), length=LENGTH, train=False)
    assert counts.prefill.parts == counts.prefill.expected
    assert ("shared" in counts.prefill.parts) == (model_type != "olmoe")
    assert ("ffn" in counts.prefill.parts) == (model_type == "glm4_moe")
    assert counts.train is None
    assert counts.experts is not None
    assert counts.experts.train is None
    assert counts.experts.only_chosen


def test_the_generic_model_is_counted() -> None:
    from smolmoe.moe.generic import SmolMoeConfig, SmolMoeForCausalLM

    llama = {"text_config": dense_llama().config.to_dict()}
    gelu = {"gated": False, "mlp_bias": True, "hidden_act": "gelu_new", "moe_intermediate_size": 32}
    gpt2 = {"text_config": dense_gpt2().config.to_dict(), "layers_module": "transformer.h", **gelu}
    for options in (llama, gpt2):
        model = SmolMoeForCausalLM(SmolMoeConfig(num_experts=4, **options))
        set_experts(model)
        assert model.config._experts_implementation == "smolmoe"
        counts = count_flops(model, length=LENGTH)
        assert counts.prefill.parts == counts.prefill.expected
        assert counts.train is not None
        assert counts.train.total == counts.train.expected_total
        assert counts.experts is not None
        assert counts.experts.only_chosen


def test_dense_models_have_no_experts() -> None:
    counts = count_flops(dense_llama(), length=LENGTH)
    assert counts.prefill.parts == by_hand(3 * WIDTH * FFN, 0, LENGTH)
    assert counts.experts is None
    gpt2 = count_flops(dense_gpt2(), length=LENGTH)
    assert gpt2.prefill.parts == gpt2.prefill.expected


def test_the_model_stays_as_it_was() -> None:
    model = dense_llama().train()
    frozen = model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    kept = model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_flops(model, length=LENGTH)
    assert model.training
    assert not frozen.requires_grad
    assert frozen.grad is None
    assert model.lm_head.weight.grad is kept
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("length", [1, 128])
def test_lengths_that_cannot_be_are_refused(length: int) -> None:
    with pytest.raises(RequestError, match="out of range"):
        count_flops(dense_llama(), length=length)
