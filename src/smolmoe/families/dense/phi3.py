"""Phi-3 and Phi-4: Llama with q, k and v in one matrix, gate and up in another, and one sliding window for all layers.

Phi-4-mini rotates only the first three quarters of each head.
"""

from __future__ import annotations

from smolmoe.families.adapt import Adaptation, Change, split
from smolmoe.families.types import DenseFamily, DenseSpec, MlpLayout, Slot

FUSED_MLP = MlpLayout("model.layers", "mlp", Slot("gate_up_proj", 0), Slot("gate_up_proj", 1), Slot("down_proj"))


def split_ffn(spec: DenseSpec) -> Change:
    """Gate and up of the layers that stay dense, as two matrices."""
    return split("gate_up_proj.weight", {"gate_proj.weight": spec.ffn_size, "up_proj.weight": spec.ffn_size})


def _adapt(spec: DenseSpec, target: str) -> Adaptation:
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    rows = {"q_proj.weight": q, "k_proj.weight": kv, "v_proj.weight": kv}
    rope = spec.config["rope_parameters"]
    limits = []
    if rope["rope_type"] == "longrope":
        limit = rope["original_max_position_embeddings"]
        limits.append(
            f"Limit: generation that grows past {limit:,} tokens with a KV cache differs from the source's: this class "
            "keeps the cached keys, rotated for short texts, and Phi3ForCausalLM computes them again. Prompts longer "
            "than that, and texts that stay shorter, are equal."
        )
    return Adaptation((split("qkv_proj.weight", rows), split_ffn(spec)), limits=limits)


FAMILY = DenseFamily(
    model_type="phi3",
    examples="Phi-3, Phi-3.5-mini, Phi-4, Phi-4-mini",
    mlp=FUSED_MLP,
    targets=("mixtral", "granitemoe", "granitemoeshared", "qwen2_moe", "glm4_moe"),
    windows="global",
    partial_rotary=True,
    adapt=_adapt,
    by_class=True,
)
