"""SmolLM3: Llama with some layers that rotate nothing, and a window on chosen layers."""

from smolmoe.families.dense.llama import LLAMA_MLP
from smolmoe.families.types import DenseFamily

FAMILY = DenseFamily(
    model_type="smollm3",
    examples="SmolLM3",
    mlp=LLAMA_MLP,
    targets=("granitemoe_swa",),
    attention_bias="config",
    mlp_bias="mlp_bias",
    windows="layers",
    rotated=lambda config: tuple(bool(rotates) for rotates in config.no_rope_layers),
    by_class=True,
)
