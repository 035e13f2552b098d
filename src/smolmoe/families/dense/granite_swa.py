"""Granite with windows: Granite with a window, and in each layer its rotary base (0: none) and attention sinks."""

from smolmoe.families.dense.llama import LLAMA_MLP
from smolmoe.families.types import DenseFamily

FAMILY = DenseFamily(
    model_type="granite_swa",
    examples="Granite Swash",
    mlp=LLAMA_MLP,
    targets=("granitemoe_swa",),
    attention_bias="config",
    mlp_bias="mlp_bias",
    multipliers=True,
    windows="layers",
    rotated=lambda config: tuple(bool(theta) for theta in config.layer_rope_theta),
    by_class=True,
)
