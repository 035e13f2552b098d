"""OLMo 2: norms after attention and FFN (the FFN reads the raw residual), and a norm over the whole q and k."""

from smolmoe.families.dense.llama import COMMON_DEFAULTS, LLAMA_MLP
from smolmoe.families.types import DenseFamily

FAMILY = DenseFamily(
    model_type="olmo2",
    examples="OLMo 2",
    mlp=LLAMA_MLP,
    targets=("flex_olmo",),
    attention_bias="config",
    qk_norm="full",
    norms=("post_attention_layernorm", "post_feedforward_layernorm"),
    defaults={**COMMON_DEFAULTS, "pad_token_id": 1, "eos_token_id": 50279, "attention_bias": False},
)
