"""Mistral: Llama with one sliding window for all layers, or none."""

from smolmoe.families.llama import LLAMA_MLP
from smolmoe.families.types import DenseFamily

FAMILY = DenseFamily(
    model_type="mistral",
    examples="Mistral 7B",
    mlp=LLAMA_MLP,
    targets=("mixtral", "granitemoeshared", "qwen2_moe", "glm4_moe"),
    windows="global",
)
