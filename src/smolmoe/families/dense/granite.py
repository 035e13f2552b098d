"""Granite 2 and 3: Llama with multipliers of embeddings, residual branches, attention and logits."""

from smolmoe.families.dense.llama import LLAMA_MLP
from smolmoe.families.types import DenseFamily

FAMILY = DenseFamily(
    model_type="granite",
    examples="Granite 2, 3.0 to 3.3",
    mlp=LLAMA_MLP,
    targets=(
        "granitemoe",
        "granitemoeshared",
    ),
    attention_bias="config",
    mlp_bias="mlp_bias",
    multipliers=True,
    by_class=True,
)
