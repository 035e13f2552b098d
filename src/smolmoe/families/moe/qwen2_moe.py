"""Qwen2Moe: softmax, top-k renormalised on request, always a shared expert behind a sigmoid gate."""

from __future__ import annotations

from typing import Any

from smolmoe.families.forms import DenseForm, Settings, qwen2
from smolmoe.families.types import LLAMA_CPP_ROPE, DenseSpec, ExpertNames, MoeNames, MoeSizes, MoeTarget, Support

PROJ_EXPERTS = ExpertNames.projections("mlp.experts.{e}")


def _config(spec: DenseSpec, sizes: MoeSizes) -> dict[str, Any]:
    sliding = any(spec.windows)
    return {
        "qkv_bias": True,
        "num_experts": sizes.experts,
        "num_experts_per_tok": sizes.top_k,
        "moe_intermediate_size": sizes.width,
        "shared_expert_intermediate_size": sizes.shared_width,
        "intermediate_size": sizes.dense_width,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": sizes.dense_layers,
        # Explicit: by default this class derives them differently from Qwen2.
        "layer_types": ["sliding_attention" if window else "full_attention" for window in spec.windows],
        "use_sliding_window": sliding,
        "sliding_window": max(filter(None, spec.windows), default=None),
        "max_window_layers": 0,
    }


def _dense(settings: Settings) -> DenseForm:
    return qwen2(settings, biased=bool(settings["qkv_bias"]))


TARGET = MoeTarget(
    name="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    names=MoeNames(
        router="mlp.gate.weight",
        memory_router="mlp.gate.weight",
        experts=PROJ_EXPERTS,
        memory_experts="mlp.experts",
        shared=ExpertNames.projections("mlp.shared_expert"),
        shared_gate="mlp.shared_expert_gate.weight",
    ),
    attention_bias=("none", "qkv"),
    zero_biases=(("none", ("q_proj", "k_proj", "v_proj")),),  # vLLM always reads them
    windows="layers",
    config=_config,
    dense=_dense,
    shared="required",
    shared_gated=True,
    dense_layers="any",
    engines={
        "vLLM": Support(mixed_windows=False, free_head_dim=False, activations=("silu",)),
        "OpenVINO": Support(),
        "SGLang": Support(activations=("silu",)),
        "llama.cpp": Support(
            "qwen2moe",
            normalises=False,
            own_head=True,
            windows=False,
            rope=LLAMA_CPP_ROPE,
            free_head_dim=False,
            dense_layers=False,
            activations=("silu",),
            divides_by_gate=True,
        ),
        "mlx-lm": Support(normalises=False, own_head=True, windows=False, rope=("default",), activations=("silu",)),
    },
)
