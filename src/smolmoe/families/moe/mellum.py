"""Mellum: Qwen3Moe with a sliding window on chosen layers, and rotary parameters for each type of layer."""

from __future__ import annotations

from typing import Any

from smolmoe.errors import TargetError
from smolmoe.families.forms import DenseForm, Settings, qwen3
from smolmoe.families.moe.qwen3_moe import TARGET as QWEN3_MOE
from smolmoe.families.types import DenseSpec, MoeSizes, MoeTarget, Support

TYPES = {True: "sliding_attention", False: "full_attention"}


def _config(spec: DenseSpec, sizes: MoeSizes) -> dict[str, Any]:
    return {
        "attention_bias": spec.attention_bias == "qkvo",
        "layer_types": [TYPES[bool(window)] for window in spec.windows],
        "sliding_window": max(filter(None, spec.windows), default=None),
        "rope_parameters": dict.fromkeys(TYPES.values(), spec.config["rope_parameters"]),
        "num_local_experts": sizes.experts,
        "num_experts_per_tok": sizes.top_k,
        "moe_intermediate_size": sizes.width,
        "intermediate_size": sizes.dense_width,
        "mlp_layer_types": ["dense" if i in sizes.dense_layers else "sparse" for i in range(spec.layers)],
        "norm_topk_prob": True,
    }


def _dense(settings: Settings) -> DenseForm:
    types, ropes = settings["layer_types"], settings["rope_parameters"]
    used = [ropes[kind] for kind in dict.fromkeys(types)]
    if any(rope != used[0] for rope in used):
        raise TargetError(
            "only this class has rotary parameters for each type of layer.",
            field="rope_parameters",
            value=ropes,
            fix="Extract two or more experts, which stay in the class.",
        )
    biased = bool(settings["attention_bias"])
    window = settings["sliding_window"] if "sliding_attention" in types else None
    return qwen3(settings, attention_bias=biased, layer_types=types, window=window, rope_parameters=used[0])


TARGET = MoeTarget(
    name="mellum",
    architecture="MellumForCausalLM",
    names=QWEN3_MOE.names,
    config=_config,
    dense=_dense,
    attention_bias=QWEN3_MOE.attention_bias,
    windows="layers",
    dense_layers="any",
    count="num_local_experts",
    # llama.cpp converts it and does not load the file.
    engines={"vLLM": Support()},
)
