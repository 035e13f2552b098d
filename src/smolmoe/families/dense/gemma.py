"""Gemma 1: Llama whose norms multiply by 1 + w, with embeddings multiplied by sqrt(D), and a GELU in the FFN."""

from __future__ import annotations

import math
from dataclasses import replace

from smolmoe.families.adapt import Adaptation, Change, scaled, shifted, untied
from smolmoe.families.dense.llama import LLAMA_MLP
from smolmoe.families.types import DenseFamily, DenseSpec


def _adapt(spec: DenseSpec, target: str) -> Adaptation:
    scale = math.sqrt(spec.hidden_size)
    changes: list[Change] = [shifted("norm.weight")]
    config: dict[str, object] = {}
    if target in ("granitemoe", "granitemoeshared"):
        config["embedding_multiplier"] = scale
    else:
        changes += [untied, scaled("embed_tokens.weight", by=scale)]
        config["tie_word_embeddings"] = False
    notes = []
    if not (scale.is_integer() and scale <= 256):
        notes.append(
            f"Gemma multiplies its embeddings by the square root of {spec.hidden_size}, rounded to the dtype that it "
            "computes in; this class by the root itself. In 16 bits they differ by at most one rounding (0.2%)."
        )
    reasons = ["it has no bidirectional attention"] if spec.config.get("use_bidirectional_attention") else []
    return Adaptation(changes, config, reasons, notes)


FAMILY = DenseFamily(
    model_type="gemma",
    examples="Gemma 1, CodeGemma",
    mlp=replace(LLAMA_MLP, activation="gelu_pytorch_tanh"),
    targets=("granitemoe", "granitemoeshared", "mixtral", "qwen2_moe", "glm4_moe"),
    attention_bias="config",
    adapt=_adapt,
    by_class=True,
)
