"""Qwen3: Llama with a norm over each head of q and k, and a sliding window on chosen layers."""

from smolmoe.families.llama import LLAMA_MLP
from smolmoe.families.types import DenseFamily

FAMILY = DenseFamily(
    model_type="qwen3",
    examples="Qwen3",
    mlp=LLAMA_MLP,
    targets=("qwen3_moe", "glm4_moe"),
    attention_bias="config",
    qk_norm="head",
    windows="layers",
)
