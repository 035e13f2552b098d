"""Hunyuan dense: Llama with a norm over each head of q and k after the rotation."""

from smolmoe.families.dense.llama import LLAMA_MLP
from smolmoe.families.types import DenseFamily

FAMILY = DenseFamily(
    model_type="hunyuan_v1_dense",
    examples="Hunyuan 0.5B to 7B",
    mlp=LLAMA_MLP,
    targets=("hunyuan_v1_moe",),
    attention_bias="config",
    qk_norm="head",
    by_class=True,
)
