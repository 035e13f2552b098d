"""FlexOlmo: OLMo 2's attention and norms, softmax, top-k renormalised on request, no shared expert."""

from __future__ import annotations

from typing import Any

from smolmoe.families.forms import form
from smolmoe.families.moe.qwen2_moe import PROJ_EXPERTS
from smolmoe.families.types import DenseSpec, MoeNames, MoeSizes, MoeTarget, Support


def _config(spec: DenseSpec, sizes: MoeSizes) -> dict[str, Any]:
    return {
        "attention_bias": spec.attention_bias == "qkvo",
        "num_experts": sizes.experts,
        "num_experts_per_tok": sizes.top_k,
        "intermediate_size": sizes.width,
        "norm_topk_prob": True,
    }


TARGET = MoeTarget(
    name="flex_olmo",
    architecture="FlexOlmoForCausalLM",
    names=MoeNames(
        router="mlp.gate.weight",
        memory_router="mlp.gate.weight",
        experts=PROJ_EXPERTS,
        memory_experts="mlp.experts",
    ),
    config=_config,
    dense=lambda settings: form(settings, "olmo2", attention_bias=bool(settings["attention_bias"])),
    attention_bias=("none", "qkvo"),
    engines={"vLLM": Support()},
)
