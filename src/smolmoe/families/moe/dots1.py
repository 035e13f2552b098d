"""Dots1: Glm4Moe's routing and shared expert with Qwen 3's attention, sliding windows on chosen layers included."""

from __future__ import annotations

from typing import Any

from smolmoe.families.forms import DenseForm, Settings, qwen3
from smolmoe.families.moe.glm4_moe import TARGET as GLM4_MOE
from smolmoe.families.moe.glm4_moe import routed
from smolmoe.families.types import LLAMA_CPP_ROPE, DenseSpec, MoeSizes, MoeTarget, Support


def _config(spec: DenseSpec, sizes: MoeSizes) -> dict[str, Any]:
    own = routed(sizes)
    own.pop("num_nextn_predict_layers")
    return {
        "attention_bias": spec.attention_bias == "qkvo",
        "layer_types": ["sliding_attention" if window else "full_attention" for window in spec.windows],
        "sliding_window": max(filter(None, spec.windows), default=None),
        **own,
        "scoring_func": "sigmoid",  # read by llama.cpp's converter alone
    }


def _dense(settings: Settings) -> DenseForm:
    types = settings["layer_types"]
    window = settings["sliding_window"] if "sliding_attention" in types else None
    return qwen3(settings, attention_bias=bool(settings["attention_bias"]), layer_types=types, window=window)


TARGET = MoeTarget(
    name="dots1",
    architecture="Dots1ForCausalLM",
    names=GLM4_MOE.names,
    config=_config,
    dense=_dense,
    attention_bias=("none", "qkvo"),
    windows="layers",
    shared="required",
    shared_multiple=True,
    dense_layers="prefix",
    scoring="sigmoid",
    independent_gates=True,
    min_experts=2,
    count="n_routed_experts",
    engines={
        "vLLM": Support(),  # by its Transformers backend
        "llama.cpp": Support(
            "dots1",
            own_head=True,
            windows=False,
            rope=LLAMA_CPP_ROPE,
            free_kv_heads=False,
            attention_bias=False,
            activations=("silu",),
        ),
        "mlx-lm": Support(
            own_head=True,
            windows=False,
            rope=("default",),
            attention_bias=False,
            activations=("silu",),
            lone_gate=False,
        ),
    },
)
