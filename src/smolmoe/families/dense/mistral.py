"""Mistral: Llama with one sliding window for all layers, or none."""

from smolmoe.families.dense.llama import COMMON_DEFAULTS, LLAMA_MLP
from smolmoe.families.types import DenseFamily

FAMILY = DenseFamily(
    model_type="mistral",
    examples="Mistral 7B",
    mlp=LLAMA_MLP,
    targets=("mixtral", "granitemoe", "granitemoeshared", "qwen2_moe", "glm4_moe"),
    windows="global",
    defaults={
        **COMMON_DEFAULTS,
        "num_key_value_heads": 8,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "sliding_window": 4096,
        "head_dim": None,
    },
)
