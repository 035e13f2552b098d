"""Mixtral: softmax, renormalised top-k, no shared expert, no biases, one sliding window for all layers or none."""

from __future__ import annotations

from typing import Any

from smolmoe.families.forms import DenseForm, Settings, form, llama
from smolmoe.families.types import LLAMA_CPP_ROPE, DenseSpec, ExpertNames, MoeNames, MoeSizes, MoeTarget, Support


def _config(spec: DenseSpec, sizes: MoeSizes) -> dict[str, Any]:
    return {
        "num_local_experts": sizes.experts,
        "num_experts_per_tok": sizes.top_k,
        "intermediate_size": sizes.width,
        "sliding_window": spec.windows[0],
        "router_jitter_noise": 0.0,
    }


def _dense(settings: Settings) -> DenseForm:
    window = settings["sliding_window"]
    return llama(settings) if window is None else form(settings, "mistral", sliding_window=window)


TARGET = MoeTarget(
    name="mixtral",
    architecture="MixtralForCausalLM",
    names=MoeNames(
        router="block_sparse_moe.gate.weight",
        memory_router="mlp.gate.weight",
        experts=ExpertNames(
            gate="block_sparse_moe.experts.{e}.w1.weight",
            up="block_sparse_moe.experts.{e}.w3.weight",
            down="block_sparse_moe.experts.{e}.w2.weight",
        ),
        memory_experts="mlp.experts",
    ),
    config=_config,
    dense=_dense,
    attention_bias=("none",),
    windows="global",
    renormalises=True,
    count="num_local_experts",
    engines={
        "vLLM": Support(activations=("silu",)),
        "SGLang": Support(activations=("silu",)),
        "llama.cpp": Support("llama", True, windows=False, rope=(*LLAMA_CPP_ROPE, "llama3"), activations=("silu",)),
        "OpenVINO": Support(),
        "mlx-lm": Support(windows=False, rope=("default",), free_head_dim=False, activations=("silu",)),
    },
)
