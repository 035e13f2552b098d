"""Code World Model: Llama with a window on chosen layers."""

from smolmoe.families.dense.llama import LLAMA_MLP
from smolmoe.families.types import DenseFamily

FAMILY = DenseFamily(
    model_type="cwm",
    examples="CWM",
    mlp=LLAMA_MLP,
    targets=("granitemoe_swa", "qwen2_moe"),
    attention_bias="none",
    windows="layers",
    by_class=True,
)
