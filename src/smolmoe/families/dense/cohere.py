"""Cohere: attention and FFN in parallel, a mean-free norm, rotary positions in every layer."""

from __future__ import annotations

from smolmoe.families.adapt import Adaptation
from smolmoe.families.dense.llama import LLAMA_MLP
from smolmoe.families.types import DenseFamily, DenseSpec


def _adapt(spec: DenseSpec, target: str) -> Adaptation:
    """Only windowed layers of Cohere2Moe rotate; a window of the context's length hides nothing."""
    context = spec.config["max_position_embeddings"]
    norms = "it has no norm of queries and keys, but the source has (use_qk_norm)"
    return Adaptation(
        config={"layer_types": ["sliding_attention"] * spec.layers, "sliding_window": context},
        refusals=(norms,) if spec.config["use_qk_norm"] else (),
        limits=(
            "Limit: this class rotates queries and keys only in windowed layers, so all layers get a window of "
            f"{context:,} tokens, max_position_embeddings: in longer texts tokens beyond it are not seen.",
        ),
    )


FAMILY = DenseFamily(
    model_type="cohere",
    examples="Command R, Aya 23",
    mlp=LLAMA_MLP,
    targets=("cohere2_moe",),
    attention_bias="config",
    adapt=_adapt,
    by_class=True,
)
