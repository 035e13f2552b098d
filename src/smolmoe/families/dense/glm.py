"""GLM-4-9B and GLM-Edge: interleaved rotary pairs in the first half of each head, gate and up in one matrix."""

from __future__ import annotations

from smolmoe.families.adapt import Adaptation, half_split, reordered
from smolmoe.families.dense.helium import ROTATED, qkv_bias
from smolmoe.families.dense.phi3 import FUSED_MLP, split_ffn
from smolmoe.families.types import DenseFamily, DenseSpec


def _adapt(spec: DenseSpec, target: str) -> Adaptation:
    head = half_split(spec.head_dim, int(spec.head_dim * spec.rotary_share))
    return Adaptation((reordered(*ROTATED, head=head), split_ffn(spec)))


FAMILY = DenseFamily(
    model_type="glm",
    examples="GLM-4-9B, GLM-Edge",
    mlp=FUSED_MLP,
    targets=("glm4_moe", "qwen2_moe", "granitemoe", "granitemoeshared", "mixtral"),
    attention_bias=qkv_bias,
    partial_rotary=True,
    adapt=_adapt,
    by_class=True,
)
