"""DeepseekV3: latent attention, otherwise as Glm4Moe."""

from __future__ import annotations

from typing import Any

from smolmoe.families.forms import twin
from smolmoe.families.moe.glm4_moe import TARGET as GLM4_MOE
from smolmoe.families.moe.glm4_moe import routed
from smolmoe.families.types import LLAMA_CPP_ROPE, DenseSpec, MoeSizes, MoeTarget, Support

_LATENT = ("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")


def _config(spec: DenseSpec, sizes: MoeSizes) -> dict[str, Any]:
    return {
        **{key: spec.config[key] for key in _LATENT},
        "rope_interleave": spec.config.get("rope_interleave", True),
        "attention_bias": spec.attention_bias == "qkvo",
        **routed(sizes),
        # Not read by transformers: without them engines assume softmax scores, or no selection bias.
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "moe_layer_freq": 1,
    }


TARGET = MoeTarget(
    name="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    names=GLM4_MOE.names,
    config=_config,
    dense=lambda settings: twin(settings, "youtu"),
    attention_bias=("none", "qkvo"),
    shared="required",
    shared_multiple=True,
    dense_layers="prefix",
    scoring="sigmoid",
    independent_gates=True,
    min_experts=2,
    count="n_routed_experts",
    engines={
        "vLLM": Support(own_head=True, attention_bias=False, activations=("silu",)),
        "llama.cpp": Support("deepseek2", attention_bias=False, rope=LLAMA_CPP_ROPE, activations=("silu",)),
        "mlx-lm": Support(own_head=True, rope=("default",), activations=("silu",), lone_gate=False),
    },
)
