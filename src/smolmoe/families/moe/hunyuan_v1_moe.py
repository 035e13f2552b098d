"""HunYuanMoEV1: softmax, renormalised top-k, always an ungated shared expert of the experts' width."""

from __future__ import annotations

from typing import Any

from smolmoe.families.moe.qwen2_moe import PROJ_EXPERTS
from smolmoe.families.types import DenseSpec, ExpertNames, MoeNames, MoeSizes, MoeTarget, Support


def _config(spec: DenseSpec, sizes: MoeSizes) -> dict[str, Any]:
    return {"num_experts": sizes.experts, "moe_topk": sizes.top_k, "intermediate_size": sizes.width}


TARGET = MoeTarget(
    name="hunyuan_v1_moe",
    architecture="HunYuanMoEV1ForCausalLM",
    names=MoeNames(
        router="mlp.gate.wg.weight",
        memory_router="mlp.gate.wg.weight",
        experts=PROJ_EXPERTS,
        memory_experts="mlp.experts",
        shared=ExpertNames.projections("mlp.shared_mlp"),
    ),
    config=_config,
    twin="hunyuan_v1_dense",
    attention_bias=("none", "qkvo"),
    shared="required",
    shared_same=True,
    renormalises=True,
    top_k="moe_topk",
    # llama.cpp's converter reads only the tokenizer of Hunyuan-A13B; mlx-lm's class never renormalises.
    engines={"vLLM": Support()},
)
