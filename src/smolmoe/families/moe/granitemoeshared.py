"""GraniteMoeShared: softmax over the chosen logits (equal to renormalising), an ungated shared expert or none.

Its own multipliers are switched off by 1, but attention_multiplier, which stands in for head_dim^-0.5.
"""

from __future__ import annotations

from typing import Any

from smolmoe.families.types import LLAMA_CPP_ROPE, DenseSpec, ExpertNames, MoeNames, MoeSizes, MoeTarget, Support


def _config(spec: DenseSpec, sizes: MoeSizes) -> dict[str, Any]:
    return {
        "num_local_experts": sizes.experts,
        "num_experts_per_tok": sizes.top_k,
        "intermediate_size": sizes.width,
        "shared_intermediate_size": sizes.shared_width,
        "attention_bias": spec.attention_bias != "none",
        "attention_multiplier": spec.head_dim**-0.5,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
    }


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
    attention_bias=("none", "qkv", "qkvo"),
    zero_biases=(("qkv", ("o_proj",)),),  # its attention_bias gives all four or none
    shared="optional",
    renormalises=True,
    count="num_local_experts",
    engines={
        "vLLM": Support(activations=("silu",)),
        "llama.cpp": Support("granitemoe", True, free_head_dim=False, rope=LLAMA_CPP_ROPE, activations=("silu",)),
    },
)
