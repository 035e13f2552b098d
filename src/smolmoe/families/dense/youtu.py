"""Youtu-LLM: DeepSeek's latent attention with dense FFNs."""

from smolmoe.families.dense.llama import LLAMA_MLP
from smolmoe.families.types import DenseFamily

FAMILY = DenseFamily(
    model_type="youtu",
    examples="Youtu-LLM-2B",
    mlp=LLAMA_MLP,
    targets=("deepseek_v3",),
    attention_bias="config",
    by_class=True,
)
