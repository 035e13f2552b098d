"""Whole models on our experts implementation and on the eager one of transformers: logits and all gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import FIRST_DENSE, MOE_CONFIGS, SIZES, VOCABULARY, random_moe, save
from transformers import AutoConfig, AutoModelForCausalLM

import smolmoe
from smolmoe.moe.generic import SmolMoeConfig, SmolMoeForCausalLM

smolmoe.register()

GPT_OSS = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 24, "layer_types": None}


def model_of(name: str) -> Any:
    torch.manual_seed(0)
    if name == "gpt_oss":
        config = AutoConfig.for_model("gpt_oss", **{**SIZES, **GPT_OSS})
        return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    if name in MOE_CONFIGS:
        return random_moe(name)
    dense = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 48}
    shape = {"layers_module": "transformer.h", "gated": False, "mlp_bias": True, "hidden_act": "gelu_new"}
    if name == "generic":
        dense, shape = {"model_type": "llama", **SIZES, "intermediate_size": 48}, {}
    dense["vocab_size"] = VOCABULARY
    config = SmolMoeConfig(text_config=dense, moe_intermediate_size=24, num_experts=4, **shape)
    return SmolMoeForCausalLM(config).eval()


def outcome(model: Any, implementation: str, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    model.set_experts_implementation(implementation)
    model.zero_grad(set_to_none=True)
    result = model(input_ids=ids, labels=ids)
    result.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": result.logits.detach()} | gradients


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert (ours[name] - expected).norm() <= tolerance * expected.norm() + 1e-7, name


@pytest.mark.parametrize("name", [*MOE_CONFIGS, "gpt_oss", "generic", "generic gpt2"])
def test_models_as_eager(name: str, called: list[int]) -> None:
    model = model_of(name)
    ids = torch.randint(2, VOCABULARY, (2, 20))
    theirs = outcome(model, "eager", ids)
    assert not called
    assert_same(outcome(model, "smolmoe", ids), theirs, 2e-5)
    assert len(called) == (1 if name in FIRST_DENSE else 2)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "generic"])
def test_models_in_bf16_and_with_checkpointing(name: str) -> None:
    model = model_of(name)
    ids = torch.randint(2, VOCABULARY, (2, 20))
    plain = outcome(model, "smolmoe", ids)
    model.train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    assert_same(outcome(model, "smolmoe", ids), plain, 1e-6)
    model.activation_checkpointing_disable()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(outcome(model, "smolmoe", ids), outcome(model, "eager", ids), 3e-2)


def test_loading_and_generating(tmp_path: Path, called: list[int]) -> None:
    folder = save(random_moe("olmoe"), tmp_path / "m")
    ours = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="smolmoe")
    theirs = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager")
    ids = torch.randint(2, VOCABULARY, (3, 7))
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
    assert torch.equal(ours.generate(ids, **settings), theirs.generate(ids, **settings))
    assert torch.equal(ours.generate(ids[:1], **settings), theirs.generate(ids[:1], **settings))
    assert called


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each call of our own function had."""
    from smolmoe.moe.kernels import register as experts

    calls: list[int] = []

    def counted(hidden: torch.Tensor, *rest: Any) -> torch.Tensor:
        calls.append(len(hidden))
        return original(hidden, *rest)

    original = experts.apply_experts
    monkeypatch.setattr(experts, "apply_experts", counted)
    return calls
