"""Gemma 3's text model: scaled embeddings, norms of form 1 + w around attention and FFN, two rotary bases."""

from __future__ import annotations

from smolmoe.families.adapt import Adaptation, Change, scaled, shifted, untied
from smolmoe.families.dense.llama import LLAMA_MLP
from smolmoe.families.types import DenseFamily, DenseSpec


def _adapt(spec: DenseSpec, target: str) -> Adaptation:
    """Norms that multiply by w, embeddings that are already scaled, queries scaled for d^-1/2."""
    config = spec.config
    refusals = ["it has no bidirectional attention"] if config["use_bidirectional_attention"] else []
    queries = spec.head_dim**0.5 * config["query_pre_attn_scalar"] ** -0.5
    changes: list[Change] = [
        untied,
        scaled("embed_tokens.weight", by=spec.hidden_size**0.5),
        shifted("norm.weight"),  # of the layers, of queries and keys, and the last
    ]
    if queries != 1.0:
        changes.append(scaled("self_attn.q_norm.weight", by=queries))
    notes = ["The output head is written as a separate tensor: only the embedding is scaled."] if spec.tied else []
    return Adaptation(changes, {"tie_word_embeddings": False}, refusals, notes)


FAMILY = DenseFamily(
    model_type="gemma3_text",
    examples="Gemma 3 270M, 1B",
    mlp=LLAMA_MLP,
    targets=("beam",),
    attention_bias="config",
    qk_norm="head",
    windows="layers",
    activation="hidden_activation",
    adapt=_adapt,
    by_class=True,
)
