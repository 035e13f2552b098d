"""Offloaded experts change where weights are, never what comes out."""

from __future__ import annotations

import pytest
import torch
from helpers import MOE_CONFIGS, VOCABULARY, dense_gpt2, dense_llama, random_moe

from smolmoe.errors import RequestError
from smolmoe.inference.offload import experts_modules, offload_experts


def generic(*, gated: bool = True) -> torch.nn.Module:
    from smolmoe.moe.generic import SmolMoeConfig, SmolMoeForCausalLM

    torch.manual_seed(0)
    if gated:
        dense = dense_llama().config.to_dict()
        return SmolMoeForCausalLM(SmolMoeConfig(text_config=dense, num_experts=4, scoring_func="sigmoid")).eval()
    modules = {"layers_module": "transformer.h", "mlp_module": "mlp", "hidden_act": "gelu_new"}
    config = SmolMoeConfig(
        text_config=dense_gpt2().config.to_dict(), gated=False, mlp_bias=True, moe_intermediate_size=24, **modules
    )
    return SmolMoeForCausalLM(config).eval()


def model_of(kind: str) -> torch.nn.Module:
    if kind.startswith("generic"):
        return generic(gated=kind == "generic")
    return random_moe(kind, num_hidden_layers=4, num_experts_per_tok=3)


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager", "batched_mm", "smolmoe"])
@pytest.mark.parametrize("kind", [*MOE_CONFIGS, "generic", "generic biased"])
@torch.no_grad()
def test_outputs_are_equal_to_the_bit_and_memory_stays_within_the_budget(kind: str, implementation: str) -> None:
    model = model_of(kind)
    model.set_experts_implementation(implementation)
    modules = experts_modules(model)
    layer_bytes = sum(p.nbytes for p in next(iter(modules.values())).parameters(recurse=False))
    batches = [torch.randint(2, VOCABULARY, (2, 9)), torch.randint(2, VOCABULARY, (1, 1))]
    expected = [model(input_ids=ids).logits for ids in batches]
    before = {name: p.clone() for name, p in model.named_parameters()}
    budget = layer_bytes + 1000
    traffic = offload_experts(model, device="cpu", expert_memory=budget)
    for ids, logits in zip(batches * 2, expected * 2, strict=True):
        assert torch.equal(model(input_ids=ids).logits, logits)
    assert 0 < traffic.held_bytes <= budget
    assert traffic.experts_bytes == len(modules) * layer_bytes
    assert traffic.misses > 0
    assert traffic.moved_bytes % traffic.misses == 0
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@torch.no_grad()
def test_weights_at_home_are_not_what_computes() -> None:
    model = random_moe("mixtral")
    ids = torch.randint(2, VOCABULARY, (1, 9))
    total = offload_experts(model, device="cpu", expert_memory=10**9)
    logits = model(input_ids=ids).logits
    assert total.held_bytes == total.experts_bytes
    for module in experts_modules(model).values():
        for parameter in module.parameters(recurse=False):
            parameter.zero_()
    assert torch.equal(model(input_ids=ids).logits, logits)
    assert total.hits > 0


@torch.no_grad()
def test_the_least_recently_used_expert_gives_way() -> None:
    model = random_moe("mixtral", num_hidden_layers=2, num_experts_per_tok=1, num_local_experts=4)
    layers = experts_modules(model)
    layer_bytes = sum(p.nbytes for p in layers[0].parameters(recurse=False))
    traffic = offload_experts(model, device="cpu", expert_memory=layer_bytes)
    x, gates = torch.randn(1, 32), torch.ones(1, 1)

    def use(layer: int, expert: int) -> tuple[int, int]:
        layers[layer](x, torch.tensor([[expert]]), gates)
        return traffic.hits, traffic.misses

    assert [use(0, expert) for expert in range(4)][-1] == (0, 4)
    assert use(0, 0) == (1, 4)
    assert use(1, 2) == (1, 5)  # takes the place of expert 1, the longest unused
    assert use(0, 0) == (2, 5)
    assert use(0, 1) == (2, 6)
    assert traffic.moved_bytes == 6 * layer_bytes // 4


def test_generation_with_a_cache_is_the_same() -> None:
    model = random_moe("glm4_moe", num_hidden_layers=3)
    ids = torch.randint(2, VOCABULARY, (1, 9))
    options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    expected = model.generate(ids, **options)
    offload_experts(model, device="cpu")
    assert torch.equal(model.generate(ids, **options), expected)


def test_what_cannot_be_offloaded_is_refused() -> None:
    with pytest.raises(RequestError, match="dense"):
        offload_experts(dense_llama(), device="cpu")
    with pytest.raises(RequestError, match="do not fit") as caught:
        offload_experts(random_moe("mixtral"), device="cpu", expert_memory=100)
    assert "Use at least" in str(caught.value.fix)


@torch.no_grad()
def test_by_default_a_token_finds_the_experts_of_the_one_before() -> None:
    model = random_moe("mixtral", num_hidden_layers=6, num_experts_per_tok=1)
    traffic = offload_experts(model, device="cpu")
    assert traffic.held_bytes == traffic.experts_bytes * (6 + 4) // (6 * 4)
    token = torch.tensor([[7]])
    model(input_ids=token)
    assert (traffic.hits, traffic.misses) == (0, 6)
    model(input_ids=token)
    assert (traffic.hits, traffic.misses) == (6, 6)
