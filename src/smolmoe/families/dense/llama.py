"""Llama and all that share its class: SmolLM, SmolLM2, TinyLlama, Yi, DeepSeek-LLM."""

from __future__ import annotations

from typing import Any

from smolmoe.families.types import DenseFamily, MlpLayout, Slot

LLAMA_MLP = MlpLayout("model.layers", "mlp", Slot("gate_proj"), Slot("up_proj"), Slot("down_proj"))

COMMON_DEFAULTS: dict[str, Any] = {
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "eos_token_id": None,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "pad_token_id": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "use_cache": True,
}

FAMILY = DenseFamily(
    model_type="llama",
    examples="SmolLM, SmolLM2, Llama 2 and 3, TinyLlama",
    mlp=LLAMA_MLP,
    targets=("mixtral", "granitemoe", "granitemoeshared", "qwen2_moe", "glm4_moe"),
    attention_bias="config",
    mlp_bias="mlp_bias",
    defaults={
        **COMMON_DEFAULTS,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "attention_bias": False,
        "mlp_bias": False,
        "head_dim": None,
    },
)
