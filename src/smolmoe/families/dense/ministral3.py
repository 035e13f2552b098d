"""Ministral 3: Mistral whose queries grow with the position, beyond the context that it was first trained with."""

from __future__ import annotations

from smolmoe.families.adapt import Adaptation
from smolmoe.families.dense.llama import LLAMA_MLP
from smolmoe.families.types import DenseFamily, DenseSpec


def _adapt(spec: DenseSpec, target: str) -> Adaptation:
    limit = spec.config["rope_parameters"].get("original_max_position_embeddings", 0)
    context = spec.config["max_position_embeddings"]
    if context <= limit:
        return Adaptation()
    return Adaptation(
        refusals=[
            f"it does not scale queries by their position, as the source does after {limit:,} of its {context:,} "
            f"tokens (it would fit a source with max_position_embeddings {limit})"
        ]
    )


FAMILY = DenseFamily(
    model_type="ministral3",
    examples="Ministral 3 with its context limited",
    mlp=LLAMA_MLP,
    targets=("mixtral", "granitemoe", "granitemoeshared", "qwen2_moe", "glm4_moe"),
    windows="global",
    adapt=_adapt,
    by_class=True,
)
