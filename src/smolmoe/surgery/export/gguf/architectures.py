"""What llama.cpp computes for each MoE class, for every setting in which a config may differ.

Taken from llama.cpp's source and confirmed by its output: a model that differs in one of these settings gives
different logits, does not convert, or does not load. Where the weights can make up for something llama.cpp lacks, the
weights are adapted before conversion: `own_head`, `divides_by_gate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's architectures.

    Attributes:
        name: llama.cpp's name.
        normalises: whether the chosen gates are renormalised to sum to 1: always, never, or (None) as the file says.
        own_head: the output head must be a separate tensor; tied embeddings are written twice.
        divides_by_gate: sigmoid(g) of the shared expert's gate is computed as silu(g) / g, NaN at g = 0.
        free_head_dim: the head width may differ from hidden size / heads.
        free_kv_heads: there may be fewer key heads than query heads.
        attention_bias: projections may have biases.
        dense_layers: the first layers may be dense.
        rope: kinds of rotary scaling.
        eps: the only supported epsilon of the norms; None for any.
    """

    name: str
    normalises: bool | None
    own_head: bool = False
    divides_by_gate: bool = False
    free_head_dim: bool = True
    free_kv_heads: bool = True
    attention_bias: bool = True
    dense_layers: bool = False
    rope: tuple[str, ...] = ("default", "linear", "yarn")
    eps: float | None = None


# model type -> architecture; llama.cpp has none for the other classes (FlexOlmo, the generic model).
ARCHITECTURES: dict[str, Architecture] = {
    "mixtral": Architecture("llama", True, rope=("default", "linear", "yarn", "llama3")),
    "granitemoeshared": Architecture("granitemoe", True, free_head_dim=False),
    "qwen2_moe": Architecture("qwen2moe", False, own_head=True, divides_by_gate=True, free_head_dim=False),
    "qwen3_moe": Architecture("qwen3moe", True, attention_bias=False),
    "glm4_moe": Architecture("glm4moe", None, dense_layers=True),
    "olmoe": Architecture(
        "olmoe", False, own_head=True, free_head_dim=False, free_kv_heads=False, attention_bias=False, eps=1e-5
    ),
}
ALWAYS_NORMALISED = ("mixtral", "granitemoeshared")


def reasons_against(model_type: str, settings: Settings) -> list[str]:
    """Why llama.cpp cannot compute this config; empty if it can.

    Args:
        model_type: the transformers model type.
        settings: the config with explicit defaults.
    """
    architecture = ARCHITECTURES.get(model_type)
    if architecture is None:
        return ["llama.cpp has no matching architecture"]
    return [*_routing(architecture, model_type, settings), *_rest(architecture, settings)]


def _routing(architecture: Architecture, model_type: str, settings: Settings) -> Iterator[str]:
    normalised = model_type in ALWAYS_NORMALISED or bool(settings.get("norm_topk_prob"))
    experts = settings.get("num_local_experts") or settings.get("num_experts")
    everything = experts == settings["num_experts_per_tok"]  # the softmax over all sums to 1
    if architecture.normalises is not None and architecture.normalises != normalised and not everything:
        always, whereas = ("always", "does not") if architecture.normalises else ("never", "does")
        yield f"llama.cpp {always} renormalises the chosen gates of this class to sum to 1, but the model {whereas}"
    groups = settings.get("n_group") or 1
    if (settings.get("topk_group") or groups) < groups:
        yield "the converter does not support group-limited routing"
    if settings.get("hidden_act") != "silu":
        yield f"llama.cpp's experts use SiLU, the model uses {settings.get('hidden_act')}"
    if not architecture.dense_layers and _has_dense_layers(settings):
        yield "in llama.cpp all layers of this class are MoE layers, but the model has dense ones"


def _has_dense_layers(settings: Settings) -> bool:
    return bool(settings.get("mlp_only_layers")) or (settings.get("decoder_sparse_step") or 1) > 1


def _rest(architecture: Architecture, settings: Settings) -> Iterator[str]:
    context, window = settings["max_position_embeddings"], _window(settings)
    if window is not None and window < context:
        yield f"llama.cpp ignores this class's sliding window of {window}, but the context has {context} tokens"
    rope = (settings.get("rope_parameters") or {}).get("rope_type", "default")
    if rope not in architecture.rope:
        yield f"llama.cpp does not support rotary scaling of type {rope} in this class"
    heads, hidden = settings["num_attention_heads"], settings["hidden_size"]
    if not architecture.free_head_dim and (settings.get("head_dim") or hidden // heads) != hidden // heads:
        yield f"llama.cpp supports only heads of width {hidden // heads} (hidden size / heads)"
    if not architecture.free_kv_heads and settings.get("num_key_value_heads", heads) != heads:
        yield "llama.cpp needs as many key heads as query heads"
    if not architecture.attention_bias and settings.get("attention_bias"):
        yield "llama.cpp does not support attention biases in this class"
    if architecture.eps is not None and settings.get("rms_norm_eps") != architecture.eps:
        yield f"the converter writes {architecture.eps:g} for the norms' epsilon, but the model has a different value"
    if settings.get("clip_qkv") is not None and architecture.name == "olmoe":
        yield "the converter does not support clipping of queries, keys and values"


def _window(settings: Settings) -> int | None:
    """The sliding window of the layers that have one."""
    types = settings.get("layer_types")
    switched_off = "use_sliding_window" in settings and not settings["use_sliding_window"]
    if switched_off or (types and "sliding_attention" not in types):
        return None
    return settings.get("sliding_window") or None
