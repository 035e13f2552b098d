"""Seed-OSS: Llama with biases on q, k and v, and on the output projection by a separate switch."""

from __future__ import annotations

from typing import Any

from smolmoe.families.adapt import Adaptation
from smolmoe.families.dense.llama import LLAMA_MLP
from smolmoe.families.types import DenseFamily, DenseSpec


def _attention_bias(config: Any) -> str:
    return {
        (False, False): "none",
        (True, False): "qkv",
        (True, True): "qkvo",
        (False, True): "o",
    }[bool(config.attention_bias), bool(config.attention_out_bias)]


def _adapt(spec: DenseSpec, target: str) -> Adaptation:
    dropout = spec.config["residual_dropout"]
    said = f"The source's residual dropout of {dropout:g}, which acts in training only, is not in this class."
    return Adaptation(notes=(said,) if dropout else ())


FAMILY = DenseFamily(
    model_type="seed_oss",
    examples="Seed-OSS",
    mlp=LLAMA_MLP,
    targets=("qwen2_moe", "granitemoe", "granitemoeshared", "glm4_moe", "mixtral"),
    attention_bias=_attention_bias,
    mlp_bias="mlp_bias",
    mlp_dropout="residual_dropout",
    adapt=_adapt,
    by_class=True,
)
