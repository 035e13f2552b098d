"""Lfm2Moe: sigmoid scores with a selection bias, renormalised, no shared expert, the first layers dense.

It divides the chosen scores by their sum + 1e-6.
"""

from __future__ import annotations

from typing import Any

from smolmoe.families.forms import twin
from smolmoe.families.types import LLAMA_CPP_ROPE, DenseSpec, ExpertNames, MoeNames, MoeSizes, MoeTarget, Support


def _config(spec: DenseSpec, sizes: MoeSizes) -> dict[str, Any]:
    return {
        **{key: spec.config[key] for key in ("norm_eps", "conv_bias", "conv_L_cache", "layer_types")},
        "num_experts": sizes.experts,
        "num_experts_per_tok": sizes.top_k,
        "moe_intermediate_size": sizes.width,
        "intermediate_size": sizes.dense_width,
        "num_dense_layers": len(sizes.dense_layers),
        **sizes.gates,
        "use_expert_bias": True,
    }


TARGET = MoeTarget(
    name="lfm2_moe",
    architecture="Lfm2MoeForCausalLM",
    names=MoeNames(
        router="feed_forward.gate.weight",
        memory_router="feed_forward.gate.weight",
        experts=ExpertNames(
            gate="feed_forward.experts.{e}.w1.weight",
            up="feed_forward.experts.{e}.w3.weight",
            down="feed_forward.experts.{e}.w2.weight",
        ),
        memory_experts="feed_forward.experts",
        selection_bias="feed_forward.expert_bias",
    ),
    config=_config,
    dense=lambda settings: twin(settings, "lfm2"),
    attention_bias=("none",),
    dense_layers="prefix",
    scoring="sigmoid",
    independent_gates=True,
    gate_epsilon=1e-6,
    engines={
        # vLLM 0.32 loads it and computes something else.
        "llama.cpp": Support("lfm2moe", normalises=True, untied=False, rope=LLAMA_CPP_ROPE, free_head_dim=False),
        "mlx-lm": Support(untied=False, rope=("default",), free_head_dim=False),
    },
)
