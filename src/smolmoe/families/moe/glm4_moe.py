"""Glm4Moe: sigmoid scores with a selection bias (loss-free balancing), renormalised or not, always an ungated shared
expert.

It counts its shared expert in multiples of the expert width, and keeps only a prefix of the layers dense.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from smolmoe.errors import TargetError
from smolmoe.families.forms import DenseForm, Settings, llama, qwen2, qwen3
from smolmoe.families.moe.qwen2_moe import PROJ_EXPERTS
from smolmoe.families.types import LLAMA_CPP_ROPE, DenseSpec, ExpertNames, MoeNames, MoeSizes, MoeTarget, Support


def _config(spec: DenseSpec, sizes: MoeSizes) -> dict[str, Any]:
    return {
        "attention_bias": spec.attention_bias == "qkv",
        "use_qk_norm": spec.qk_norm == "head",
        # By default the class rotates half of each head, here and in the rope parameters.
        "partial_rotary_factor": spec.rotary_share,
        "rope_parameters": {**spec.rope, "partial_rotary_factor": spec.rotary_share},
        **routed(sizes),
    }


def routed(sizes: MoeSizes) -> dict[str, Any]:
    """The settings that DeepSeek-V3's class and those like it have of the MoE."""
    return {
        "n_routed_experts": sizes.experts,
        "num_experts_per_tok": sizes.top_k,
        "moe_intermediate_size": sizes.width,
        "n_shared_experts": sizes.shared_width // sizes.width,
        "intermediate_size": sizes.dense_width,
        "first_k_dense_replace": len(sizes.dense_layers),
        **sizes.gates,
        "n_group": 1,
        "topk_group": 1,
        "num_nextn_predict_layers": 0,
    }


def _dense(settings: Settings) -> DenseForm:
    rope = dict(settings["rope_parameters"])
    rotated = rope.pop("partial_rotary_factor", settings.get("partial_rotary_factor", 0.5))
    if rotated != 1.0:
        raise TargetError(
            "only part of each head is rotated, which Llama, Qwen2 and Qwen3 do not support.",
            field="partial_rotary_factor",
            value=rotated,
            fix="Extract two or more experts, which stay in the class.",
        )
    biased = bool(settings["attention_bias"])  # on q, k and v
    if settings["use_qk_norm"]:
        found = qwen3(settings, attention_bias=biased, layer_types=None, window=None, rope_parameters=rope)
        return replace(found, zero_biases=("o_proj",) if biased else ())
    return qwen2(settings, biased=True, rope_parameters=rope) if biased else llama(settings, rope_parameters=rope)


TARGET = MoeTarget(
    name="glm4_moe",
    architecture="Glm4MoeForCausalLM",
    names=MoeNames(
        router="mlp.gate.weight",
        memory_router="mlp.gate.weight",
        experts=PROJ_EXPERTS,
        memory_experts="mlp.experts",
        shared=ExpertNames.projections("mlp.shared_experts"),
        selection_bias="mlp.gate.e_score_correction_bias",
    ),
    config=_config,
    dense=_dense,
    attention_bias=("none", "qkv"),
    partial_rotary=True,
    shared="required",
    shared_multiple=True,
    dense_layers="prefix",
    scoring="sigmoid",
    independent_gates=True,
    min_experts=2,  # its router sums the two best scores of each expert group
    count="n_routed_experts",
    engines={
        "vLLM": Support(own_head=True, activations=("silu",)),
        # Its kernel for at most 32 experts divides by the sum without being asked to.
        "SGLang": Support(normalises=True, activations=("silu",)),
        "llama.cpp": Support("glm4moe", windows=False, rope=LLAMA_CPP_ROPE, activations=("silu",)),
        "mlx-lm": Support(own_head=True, windows=False, rope=("default",), activations=("silu",), lone_gate=False),
    },
)
