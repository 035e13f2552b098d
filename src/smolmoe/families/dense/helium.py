"""Helium: Llama whose rotary pairs are interleaved."""

from __future__ import annotations

from typing import Any

from smolmoe.families.adapt import Adaptation, half_split, reordered
from smolmoe.families.dense.llama import LLAMA_MLP
from smolmoe.families.types import DenseFamily, DenseSpec

ROTATED = ("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")


def qkv_bias(config: Any) -> str:
    """`attention_bias` that means q, k and v only."""
    return "qkv" if config.attention_bias else "none"


def _adapt(spec: DenseSpec, target: str) -> Adaptation:
    return Adaptation((reordered(*ROTATED, head=half_split(spec.head_dim)),))


FAMILY = DenseFamily(
    model_type="helium",
    examples="Helium 1",
    mlp=LLAMA_MLP,
    targets=("mixtral", "granitemoe", "granitemoeshared", "qwen2_moe", "glm4_moe"),
    attention_bias=qkv_bias,
    mlp_bias="mlp_bias",
    adapt=_adapt,
    by_class=True,
)
