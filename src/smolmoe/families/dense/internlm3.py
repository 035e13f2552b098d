"""InternLM3: Llama by another name; its switch `bias` gives all projections a bias, those of the FFN too."""

from smolmoe.families.dense.llama import LLAMA_MLP
from smolmoe.families.types import DenseFamily

FAMILY = DenseFamily(
    model_type="internlm3",
    examples="InternLM3",
    mlp=LLAMA_MLP,
    targets=("mixtral", "granitemoe", "granitemoeshared", "qwen2_moe", "glm4_moe"),
    attention_bias="config",
    mlp_bias="mlp_bias",
    by_class=True,
)
