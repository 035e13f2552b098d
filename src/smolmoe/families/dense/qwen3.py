"""Qwen3: Llama with a norm over each head of q and k, and a sliding window on chosen layers."""

from smolmoe.families.dense.llama import COMMON_DEFAULTS, LLAMA_MLP
from smolmoe.families.types import DenseFamily

FAMILY = DenseFamily(
    model_type="qwen3",
    examples="Qwen3",
    mlp=LLAMA_MLP,
    targets=("qwen3_moe", "mellum", "glm4_moe", "dots1"),
    attention_bias="config",
    qk_norm="head",
    windows="layers",
    defaults={
        **COMMON_DEFAULTS,
        "num_key_value_heads": 32,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "head_dim": 128,
        "attention_bias": False,
    },
)
