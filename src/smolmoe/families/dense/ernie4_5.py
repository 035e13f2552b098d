"""ERNIE 4.5: Llama whose rotary pairs are neighbours; a bias, if any, is on every projection."""

from smolmoe.families.dense.llama import LLAMA_MLP
from smolmoe.families.types import DenseFamily

FAMILY = DenseFamily(
    model_type="ernie4_5",
    examples="ERNIE 4.5 0.3B",
    mlp=LLAMA_MLP,
    targets=("ernie4_5_moe",),
    mlp_bias="use_bias",
    by_class=True,
)
