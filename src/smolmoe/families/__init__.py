"""Data about architectures: dense families that can be upcycled, and the MoE classes they can be converted to."""

from __future__ import annotations

from smolmoe.families import (
    flex_olmo,
    generic,
    glm4_moe,
    granitemoeshared,
    llama,
    mistral,
    mixtral,
    olmo2,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
)
from smolmoe.families.types import DenseFamily, DenseSpec, ExpertNames, MlpLayout, MoeNames, MoeTarget, Slot

DENSE_FAMILIES: dict[str, DenseFamily] = {
    module.FAMILY.model_type: module.FAMILY for module in (llama, mistral, qwen2, qwen3, olmo2)
}
MOE_TARGETS: dict[str, MoeTarget] = {
    module.TARGET.name: module.TARGET
    for module in (mixtral, granitemoeshared, qwen2_moe, qwen3_moe, glm4_moe, flex_olmo, generic)
}

__all__ = [
    "DENSE_FAMILIES",
    "MOE_TARGETS",
    "DenseFamily",
    "DenseSpec",
    "ExpertNames",
    "MlpLayout",
    "MoeNames",
    "MoeTarget",
    "Slot",
]
