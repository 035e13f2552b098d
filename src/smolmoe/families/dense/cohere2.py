"""Cohere 2: attention and FFN in parallel, a mean-free norm, rotary positions in the windowed layers alone."""

from __future__ import annotations

from typing import Any

from smolmoe.families.dense.llama import LLAMA_MLP
from smolmoe.families.types import DenseFamily


def _rotated(config: Any) -> tuple[bool, ...]:
    return tuple(kind == "sliding_attention" for kind in config.layer_types)


FAMILY = DenseFamily(
    model_type="cohere2",
    examples="Command R7B, Command A",
    mlp=LLAMA_MLP,
    targets=("cohere2_moe",),
    attention_bias="config",
    windows="layers",
    rotated=_rotated,
    by_class=True,
)
