"""Qwen3Moe: softmax, renormalised top-k, no shared expert, a norm over each head of q and k."""

from __future__ import annotations

from typing import Any

from smolmoe.families.forms import DenseForm, Settings, qwen3
from smolmoe.families.moe.qwen2_moe import PROJ_EXPERTS
from smolmoe.families.types import LLAMA_CPP_ROPE, DenseSpec, MoeNames, MoeSizes, MoeTarget, Support


def _config(spec: DenseSpec, sizes: MoeSizes) -> dict[str, Any]:
    return {
        "attention_bias": spec.attention_bias == "qkvo",
        "num_experts": sizes.experts,
        "num_experts_per_tok": sizes.top_k,
        "moe_intermediate_size": sizes.width,
        "intermediate_size": sizes.dense_width,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": sizes.dense_layers,
        "use_sliding_window": spec.windows[0] is not None,
        "sliding_window": spec.windows[0],
    }


def _dense(settings: Settings) -> DenseForm:
    window = settings["sliding_window"] if settings["use_sliding_window"] else None
    types = ["sliding_attention" if window else "full_attention"] * settings["num_hidden_layers"]
    return qwen3(settings, attention_bias=bool(settings["attention_bias"]), layer_types=types, window=window)


TARGET = MoeTarget(
    name="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    names=MoeNames(
        router="mlp.gate.weight",
        memory_router="mlp.gate.weight",
        experts=PROJ_EXPERTS,
        memory_experts="mlp.experts",
    ),
    config=_config,
    dense=_dense,
    attention_bias=("none", "qkvo"),
    windows="global",
    dense_layers="any",
    engines={
        "vLLM": Support(attention_bias=False, activations=("silu",)),
        "OpenVINO": Support(),
        "SGLang": Support(activations=("silu",)),
        "llama.cpp": Support(
            "qwen3moe",
            normalises=True,
            windows=False,
            rope=LLAMA_CPP_ROPE,
            attention_bias=False,
            dense_layers=False,
            activations=("silu",),
        ),
        "mlx-lm": Support(windows=False, attention_bias=False, activations=("silu",)),
    },
)
