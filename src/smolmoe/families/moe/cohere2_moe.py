"""Cohere2Moe: Cohere 2's layers, sigmoid scores of the chosen experts, renormalised, a shared expert or none."""

from __future__ import annotations

from typing import Any

from smolmoe.errors import TargetError
from smolmoe.families.forms import DenseForm, Settings, twin
from smolmoe.families.moe.qwen2_moe import PROJ_EXPERTS
from smolmoe.families.types import DenseSpec, ExpertNames, MoeNames, MoeSizes, MoeTarget, Support


def _config(spec: DenseSpec, sizes: MoeSizes) -> dict[str, Any]:
    dense = sizes.dense_layers
    return {
        "layer_norm_eps": spec.config["layer_norm_eps"],
        "logit_scale": spec.config["logit_scale"],
        "attention_bias": spec.attention_bias == "qkvo",
        "sliding_window": max(filter(None, spec.windows), default=None),
        "layer_types": ["sliding_attention" if window else "full_attention" for window in spec.windows],
        "mlp_layer_types": ["dense" if i in dense else "sparse" for i in range(spec.layers)],
        "prefix_dense_intermediate_size": sizes.dense_width,
        "prefix_dense_sliding_window_pattern": 4,  # not 1, by which dense layers with full attention rotate
        "num_experts": sizes.experts,
        "num_experts_per_tok": sizes.top_k,
        "intermediate_size": sizes.width,
        "num_shared_experts": sizes.shared_width // sizes.width,
        "shared_expert_combination_strategy": "sum",
        "expert_selection_fn": "sigmoid",  # llama.cpp knows no other
        "norm_topk_prob": True,
    }


def _dense(settings: Settings) -> DenseForm:
    dense = [i for i, kind in enumerate(settings["mlp_layer_types"]) if kind == "dense"]
    unrotated = any(settings["layer_types"][i] == "full_attention" for i in dense)
    unlike = {
        "rms_norm_eps": settings["rms_norm_eps"] is not None,
        "head_dim": settings["head_dim"] != settings["hidden_size"] // settings["num_attention_heads"],
        "prefix_dense_sliding_window_pattern": settings["prefix_dense_sliding_window_pattern"] == 1 and unrotated,
    }
    for key in (key for key, found in unlike.items() if found):
        raise TargetError(
            "no dense class of transformers has this setting.",
            field=key,
            value=settings[key],
            fix="Extract two or more experts, which stay in the class.",
        )
    width = settings["prefix_dense_intermediate_size"] if dense else None
    return twin(settings, "cohere2", **({"intermediate_size": width} if width else {}))


TARGET = MoeTarget(
    name="cohere2_moe",
    architecture="Cohere2MoeForCausalLM",
    names=MoeNames(
        router="mlp.gate.weight",
        memory_router="mlp.gate.weight",
        experts=PROJ_EXPERTS,
        memory_experts="mlp.experts",
        shared=ExpertNames.projections("mlp.shared_experts"),
    ),
    config=_config,
    dense=_dense,
    attention_bias=("none", "qkvo"),
    windows="layers",
    unrotated=True,
    shared="optional",
    shared_multiple=True,
    dense_layers="any",
    scoring="sigmoid",
    scoring_key="expert_selection_fn",
    averages="shared_expert_combination_strategy",
    # llama.cpp computes something else: it takes the sigmoid of all logits.
    # vLLM 0.32 loads all of these, and computes something else.
    engines={"vLLM": Support(untied=False, windows=False, attention_bias=False)},
)
