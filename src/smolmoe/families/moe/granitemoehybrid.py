"""GraniteMoeHybrid: GraniteMoeShared with Mamba 2 layers; the shared expert is always there. Dense with 0 experts."""

from __future__ import annotations

from typing import Any

from smolmoe.families.moe import granitemoeshared
from smolmoe.families.types import LLAMA_CPP_ROPE, DenseSpec, MoeSizes, MoeTarget, Support


def _config(spec: DenseSpec, sizes: MoeSizes) -> dict[str, Any]:
    return {
        "num_local_experts": sizes.experts,
        "num_experts_per_tok": sizes.top_k,
        "intermediate_size": sizes.width,
        "shared_intermediate_size": sizes.shared_width,
    }


TARGET = MoeTarget(
    name="granitemoehybrid",
    architecture="GraniteMoeHybridForCausalLM",
    names=granitemoeshared.TARGET.names,
    config=_config,
    twin="granitemoehybrid",
    attention_bias=("none", "qkvo"),
    unrotated=True,
    multipliers=True,
    shared="required",
    renormalises=True,
    count="num_local_experts",
    engines={
        "vLLM": Support(),
        "llama.cpp": Support("granitehybrid", True, rope=LLAMA_CPP_ROPE, activations=("silu",)),
    },
)
