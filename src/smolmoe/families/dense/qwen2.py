"""Qwen2 and Qwen2.5: Llama with biases on q, k and v, and a sliding window on chosen layers."""

from smolmoe.families.dense.llama import COMMON_DEFAULTS, LLAMA_MLP
from smolmoe.families.types import DenseFamily

FAMILY = DenseFamily(
    model_type="qwen2",
    examples="Qwen2, Qwen2.5",
    mlp=LLAMA_MLP,
    targets=("qwen2_moe", "granitemoe", "granitemoeshared", "glm4_moe"),
    attention_bias="qkv",
    windows="layers",
    defaults={
        **COMMON_DEFAULTS,
        "num_key_value_heads": 32,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    own_tokenizer=True,
)
