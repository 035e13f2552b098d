"""Ernie4_5_Moe: softmax with a selection bias, renormalised, an ungated shared expert or none.

The first and the last layers may be dense.
"""

from __future__ import annotations

from typing import Any

from smolmoe.families.forms import twin
from smolmoe.families.moe.qwen2_moe import PROJ_EXPERTS
from smolmoe.families.types import LLAMA_CPP_ROPE, DenseSpec, ExpertNames, MoeNames, MoeSizes, MoeTarget, Support


def _config(spec: DenseSpec, sizes: MoeSizes) -> dict[str, Any]:
    first = next(i for i in range(spec.layers) if i not in sizes.dense_layers)
    return {
        "use_bias": False,
        "moe_num_experts": sizes.experts,
        "moe_k": sizes.top_k,
        "moe_intermediate_size": sizes.width,
        "moe_num_shared_experts": sizes.shared_width // sizes.width,
        "intermediate_size": sizes.dense_width,
        "moe_layer_start_index": first,
        "moe_layer_end_index": first + spec.layers - len(sizes.dense_layers) - 1,
        "moe_layer_interval": 1,
        "moe_norm_min": 1e-12,
        # mlx-lm does not load the class without these two; nothing else reads them.
        "moe_capacity": [64, 64, 64],
        "moe_use_aux_free": True,
    }


TARGET = MoeTarget(
    name="ernie4_5_moe",
    architecture="Ernie4_5_MoeForCausalLM",
    names=MoeNames(
        router="mlp.gate.weight",
        memory_router="mlp.gate.weight",
        experts=PROJ_EXPERTS,
        memory_experts="mlp.experts",
        shared=ExpertNames.projections("mlp.shared_experts"),
        selection_bias="mlp.moe_statics.e_score_correction_bias",
        memory_selection_bias="mlp.gate.moe_statics.e_score_correction_bias",
        selection_bias_row=True,
    ),
    config=_config,
    dense=lambda settings: twin(settings, "ernie4_5"),
    attention_bias=("none",),
    shared="optional",
    shared_multiple=True,
    dense_layers="ends",
    renormalises=True,
    count="moe_num_experts",
    top_k="moe_k",
    engines={
        "vLLM": Support(selection_bias=False),
        # Its converter takes intermediate_size / num_key_value_heads for the shared expert's width.
        "llama.cpp": Support(
            "ernie4_5-moe", shared=False, last_dense=False, rope=LLAMA_CPP_ROPE, activations=("silu",)
        ),
        "mlx-lm": Support(selection_bias=False, rope=("default",), activations=("silu",)),
    },
)
