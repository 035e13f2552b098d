"""Qwen3_5Moe's text model: softmax, renormalised top-k, always a shared expert behind a sigmoid gate."""

from __future__ import annotations

from typing import Any

from smolmoe.families.moe.qwen2_moe import TARGET as QWEN2_MOE
from smolmoe.families.types import DenseSpec, MoeSizes, MoeTarget


def _config(spec: DenseSpec, sizes: MoeSizes) -> dict[str, Any]:
    return {
        "num_experts": sizes.experts,
        "num_experts_per_tok": sizes.top_k,
        "moe_intermediate_size": sizes.width,
        "shared_expert_intermediate_size": sizes.shared_width,
        "intermediate_size": sizes.dense_width,  # of use to nothing but a way back to the dense class
    }


TARGET = MoeTarget(
    name="qwen3_5_moe_text",
    architecture="Qwen3_5MoeForCausalLM",
    names=QWEN2_MOE.names,
    config=_config,
    twin="qwen3_5_text",
    attention_bias=("none", "qkvo"),
    shared="required",
    shared_gated=True,
    renormalises=True,
    own_tokenizer=True,
    # vLLM's and mlx-lm's classes are those of the multimodal checkpoints alone.
)
