"""Qwen3.5's text model: gated delta nets in most layers, gated attention in the rest."""

from smolmoe.families.dense.llama import LLAMA_MLP
from smolmoe.families.types import DenseFamily

FAMILY = DenseFamily(
    model_type="qwen3_5_text",
    examples="Qwen3.5 (text model)",
    mlp=LLAMA_MLP,
    targets=("qwen3_5_moe_text",),
    attention_bias="config",
    qk_norm="head",
    by_class=True,
)
