"""OLMo 1: Llama with LayerNorm without weights. Centred writers to the residual stream make it RMSNorm."""

from __future__ import annotations

from smolmoe.families.adapt import Adaptation, added, centred
from smolmoe.families.dense.llama import LLAMA_MLP
from smolmoe.families.types import DenseFamily, DenseSpec


def _adapt(spec: DenseSpec, target: str) -> Adaptation:
    width = (spec.hidden_size,)
    changes = (
        # The output head may stay tied: the normalised stream's mean is 0, so the embedding's does not matter there.
        centred("embed_tokens.weight", axis=1),
        centred("o_proj.weight", "o_proj.bias", "down_proj.weight", axis=0),
        added("self_attn.o_proj.weight", "input_layernorm.weight", 1.0, width),
        added("self_attn.o_proj.weight", "post_attention_layernorm.weight", 1.0, width),
        added("model.embed_tokens.weight", "model.norm.weight", 1.0, width),
    )
    clipped = ["it does not clip queries, keys and values"] if spec.config["clip_qkv"] is not None else []
    return Adaptation(changes, refusals=clipped)


FAMILY = DenseFamily(
    model_type="olmo",
    examples="OLMo 1 (without clip_qkv)",
    mlp=LLAMA_MLP,
    targets=("mixtral", "granitemoe", "granitemoeshared", "qwen2_moe", "glm4_moe"),
    attention_bias="config",
    centred=True,
    constants={"rms_norm_eps": 1e-5},
    adapt=_adapt,
    by_class=True,
)
