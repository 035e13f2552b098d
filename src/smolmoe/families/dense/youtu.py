"""Youtu-LLM: DeepSeek's latent attention with dense FFNs."""

from __future__ import annotations

from smolmoe.families.adapt import Adaptation, interleaved, reordered
from smolmoe.families.dense.llama import LLAMA_MLP
from smolmoe.families.types import DenseFamily, DenseSpec


def neighbours(spec: DenseSpec, target: str = "") -> Adaptation:
    """Rotary pairs as neighbours, which is all that engines compute of DeepseekV3."""
    config = spec.config
    if config.get("rope_interleave", False):
        return Adaptation()
    rotary, key = config["qk_rope_head_dim"], "self_attn.kv_a_proj_with_mqa"
    return Adaptation(
        changes=(
            reordered("q_b_proj.weight", "q_proj.weight", head=interleaved(rotary, config["qk_nope_head_dim"])),
            reordered(f"{key}.weight", f"{key}.bias", head=interleaved(rotary, config["kv_lora_rank"])),
        ),
        config={"rope_interleave": True},
    )


FAMILY = DenseFamily(
    model_type="youtu",
    examples="Youtu-LLM-2B",
    mlp=LLAMA_MLP,
    targets=("deepseek_v3",),
    attention_bias="config",
    adapt=neighbours,
    by_class=True,
)
