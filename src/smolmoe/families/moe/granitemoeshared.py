"""GraniteMoeShared: softmax over the chosen logits (equal to renormalising), an ungated shared expert or none.

A source without multipliers has 1 for each of them, but head_dim^-0.5 for attention_multiplier.
"""

from __future__ import annotations

from typing import Any

from smolmoe.families.forms import DenseForm, Settings, llama, twin
from smolmoe.families.types import LLAMA_CPP_ROPE, DenseSpec, ExpertNames, MoeNames, MoeSizes, MoeTarget, Support

MULTIPLIERS = ("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling")


def _config(spec: DenseSpec, sizes: MoeSizes) -> dict[str, Any]:
    return {
        "num_local_experts": sizes.experts,
        "num_experts_per_tok": sizes.top_k,
        "intermediate_size": sizes.width,
        "shared_intermediate_size": sizes.shared_width,
        "attention_bias": spec.attention_bias != "none",
        **_multipliers(spec),
    }


def _multipliers(spec: DenseSpec) -> dict[str, Any]:
    if spec.family is not None and spec.family.multipliers:
        return {key: spec.config[key] for key in MULTIPLIERS}
    return {**dict.fromkeys(MULTIPLIERS, 1.0), "attention_multiplier": spec.head_dim**-0.5}


def _dense(settings: Settings) -> DenseForm:
    """Llama, or Granite where the multipliers do something."""
    head_dim = settings.get("head_dim") or settings["hidden_size"] // settings["num_attention_heads"]
    plain = {**dict.fromkeys(MULTIPLIERS, 1.0), "attention_multiplier": head_dim**-0.5}
    if any(abs(settings[key] - value) > 1e-6 * value for key, value in plain.items()):
        return twin(settings, "granite")
    return llama(settings, attention_bias=bool(settings["attention_bias"]), head_dim=head_dim)


TARGET = MoeTarget(
    name="granitemoeshared",
    architecture="GraniteMoeSharedForCausalLM",
    names=MoeNames(
        router="block_sparse_moe.router.layer.weight",
        memory_router="block_sparse_moe.router.weight",
        experts=ExpertNames(
            gate_up="block_sparse_moe.input_linear.weight", down="block_sparse_moe.output_linear.weight"
        ),
        memory_experts="block_sparse_moe.experts",
        shared=ExpertNames(gate_up="shared_mlp.input_linear.weight", down="shared_mlp.output_linear.weight"),
    ),
    config=_config,
    dense=_dense,
    attention_bias=("none", "qkv", "qkvo"),
    zero_biases=(("qkv", ("o_proj",)),),  # its attention_bias gives all four or none
    multipliers=True,
    shared="optional",
    renormalises=True,
    count="num_local_experts",
    engines={
        "vLLM": Support(free_head_dim=False, attention_bias=False, activations=("silu",)),
        "llama.cpp": Support("granitemoe", True, free_head_dim=False, rope=LLAMA_CPP_ROPE, activations=("silu",)),
    },
)
