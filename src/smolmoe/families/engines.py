"""Which serving engines compute a model rightly, for every setting in which a config may differ.

The facts are in the MoE classes' own files, read from the engines' source and confirmed by their output: a model that
differs in one of these settings gives different logits there, or does not load.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from smolmoe.core.model_config import expert_counts
from smolmoe.errors import RequestError
from smolmoe.families import MOE_TARGETS
from smolmoe.families.types import LLAMA_CPP_ROPE, Support

# Engine -> the shell command that runs a model; `code` is what lets it run a model's own code.
ENGINES = {
    "transformers": "transformers serve {model}{code}",
    "vLLM": "vllm serve {model}{code}",
    "SGLang": "python -m sglang.launch_server --model-path {model}{code}",
    "llama.cpp": "smolmoe export {model} model.gguf --to gguf --llama-cpp PATH_OF_LLAMA_CPP\n"
    "llama-cli -m model.gguf -p 'Once upon a time'",
    "mlx-lm": "mlx_lm.generate --model {model} --prompt 'Once upon a time'",
    "OpenVINO": "optimum-cli export openvino --model {model} openvino-model",
}
Settings = Mapping[str, Any]
_SHARED = ("num_shared_experts", "moe_num_shared_experts")

# Classes that are read but never written.
_READ: dict[str, dict[str, Support]] = {
    "olmoe": {
        "vLLM": Support(own_head=True),
        "llama.cpp": Support(
            "olmoe",
            normalises=False,
            own_head=True,
            windows=False,
            rope=LLAMA_CPP_ROPE,
            free_head_dim=False,
            free_kv_heads=False,
            attention_bias=False,
            dense_layers=False,
            activations=("silu",),
            eps=1e-5,
        ),
    }
}


def support(engine: str, model_type: str) -> Support | None:
    """What an engine computes of an MoE class; None if it cannot run the class."""
    if engine == "transformers":
        return Support(needs="trust_remote_code or smolmoe.register()" if model_type in ("generic", "smolmoe") else "")
    target = MOE_TARGETS.get("generic" if model_type == "smolmoe" else model_type)
    return (target.engines if target else _READ.get(model_type, {})).get(engine)


def engine_name(name: str) -> str:
    """The engine that a user means: only letters count, of either case, and "mlx" is mlx-lm.

    Raises:
        RequestError: no such engine.
    """
    for engine in ENGINES:
        if _letters(name) in (_letters(engine), _letters(engine.removesuffix("-lm"))):
            return engine
    raise RequestError("no such engine.", field="runs_in", value=name, fix=f"Known: {', '.join(ENGINES)}.")


def _letters(name: str) -> str:
    return "".join(filter(str.isalpha, name.lower()))


def reasons_against(engine: str, settings: Settings, *, biased: bool = False) -> list[str]:
    """Why an engine cannot compute this model; empty if it can.

    Args:
        engine: one of `ENGINES`.
        settings: the MoE's config; settings that it leaves out are taken to be no obstacle.
        biased: the selection biases of its routers, zero after a conversion, are not all the same.
    """
    model_type = str(settings["model_type"])
    if engine == "transformers":
        return []
    found = support(engine, model_type)
    if found is None:
        return ["it is not known to run this class"]
    ignored = ["it ignores the routers' selection biases, which training has moved"]
    bias = ignored if biased and not found.selection_bias else []
    return [*bias, *_routing(found, model_type, settings), *_rest(found, settings)]


def runs_in(settings: Settings, *, biased: bool = False) -> dict[str, list[str]]:
    """For each engine the reasons why it cannot compute this model."""
    return {engine: reasons_against(engine, settings, biased=biased) for engine in ENGINES}


def by_reason(runs: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The engines that cannot compute a model, by the reason."""
    found: dict[str, list[str]] = {}
    for engine, why in runs.items():
        if why:
            found.setdefault("; ".join(why), []).append(engine)
    return found


def limits(found: Support) -> str:
    """What a model must do without in an engine, for the table of targets."""
    said = [
        {True: "always renormalises the gates", False: "never renormalises the gates", None: ""}[found.normalises],
        "" if found.untied else "tied embeddings",
        "" if found.scores is None else f"{found.scores} scores",
        "" if found.selection_bias else "no selection bias",
        "" if found.windows else "no sliding window",
        "" if found.mixed_windows else "one sliding window for all layers or none",
        "" if found.rope is None else f"rotary scaling {', '.join(found.rope)}",
        "" if found.free_head_dim else "heads of width hidden size / heads",
        "" if found.free_kv_heads else "as many key heads as query heads",
        "" if found.attention_bias else "no attention biases",
        "" if found.shared else "no shared expert",
        "" if found.dense_layers else "no dense layers",
        "" if found.last_dense else "no dense layers at the end",
        "" if found.activations is None else f"activation {', '.join(found.activations)}",
        "" if found.plain_ffn else "only FFNs with a gate and without biases",
        "" if found.eps is None else f"norms' epsilon {found.eps:g}",
        "" if found.lone_gate else "at least 2 experts per token",
        found.needs,
    ]
    return "; ".join(filter(None, said))


def _routing(found: Support, model_type: str, settings: Settings) -> Iterator[str]:
    target = MOE_TARGETS.get(model_type)
    normalised = bool((target and target.renormalises) or settings.get("norm_topk_prob"))
    experts, top_k = expert_counts(settings) or (None, 0)
    everything = experts == top_k  # the softmax over all sums to 1
    if found.normalises is not None and found.normalises != normalised and not everything:
        always, whereas = ("always", "does not") if found.normalises else ("never", "does")
        yield f"it {always} renormalises the chosen gates of this class to sum to 1, but the model {whereas}"
    scores = settings.get("scoring_func")
    if found.scores is not None and scores not in (None, found.scores):
        yield f"it computes only {found.scores} scores in this class, the model uses {scores}"
    if not found.lone_gate and normalised and top_k == 1:
        yield "it does not renormalise the gate of a single chosen expert to 1"
    groups = settings.get("n_group") or 1
    if (settings.get("topk_group") or groups) < groups:
        yield "group-limited routing is not supported"
    activation = settings.get("hidden_act") or settings.get("hidden_activation")
    if found.activations is not None and activation is not None and activation not in found.activations:
        yield f"its experts use {', '.join(found.activations)}, the model uses {activation}"
    if not found.plain_ffn and (settings.get("gated") is False or settings.get("mlp_bias")):
        yield "its experts have a gate and no biases"
    if not found.dense_layers and _has_dense_layers(settings):
        yield "there all layers of this class are MoE layers, but the model has dense ones"
    last = (settings.get("num_hidden_layers") or 0) - 1
    if not found.last_dense and settings.get("moe_layer_end_index", last) not in (-1, last):
        yield "there the last layers of this class are MoE layers, but the model has dense ones"
    if not found.shared and any(settings.get(key) for key in _SHARED):
        yield "it does not support a shared expert of this kind"


def _has_dense_layers(settings: Settings) -> bool:
    listed = settings.get("mlp_only_layers") or "dense" in (settings.get("mlp_layer_types") or ())
    return bool(listed) or (settings.get("decoder_sparse_step") or 1) > 1


def _rest(found: Support, settings: Settings) -> Iterator[str]:
    context, window = settings.get("max_position_embeddings") or 0, _window(settings)
    if not found.windows and window is not None and window < context:
        yield f"it ignores this class's sliding window of {window}, but the context has {context} tokens"
    if not found.mixed_windows and window is not None and "full_attention" in (settings.get("layer_types") or ()):
        yield "it has one sliding window for all layers of this class or none, but the model mixes both"
    rope = (settings.get("rope_parameters") or {}).get("rope_type", "default")
    if found.rope is not None and rope not in found.rope:
        yield f"it does not support rotary scaling of type {rope} in this class"
    heads, hidden, head_dim = (settings.get(key) for key in ("num_attention_heads", "hidden_size", "head_dim"))
    if not found.free_head_dim and heads and hidden and head_dim and head_dim * heads != hidden:
        yield f"it supports only heads of width {hidden // heads} (hidden size / heads)"
    if not found.free_kv_heads and settings.get("num_key_value_heads", heads) != heads:
        yield "it needs as many key heads as query heads"
    if not found.attention_bias and settings.get("attention_bias"):
        yield "it does not support attention biases in this class"
    if not found.untied and settings.get("tie_word_embeddings") is False:
        yield "its output head is always the embedding, but the model has a separate one"
    if found.eps is not None and settings.get("rms_norm_eps") != found.eps:
        yield f"it assumes {found.eps:g} for the norms' epsilon, but the model has a different value"
    if settings.get("clip_qkv") is not None:
        yield "clipping of queries, keys and values is not supported"


def _window(settings: Settings) -> int | None:
    """The sliding window of the layers that have one."""
    types = settings.get("layer_types")
    switched_off = "use_sliding_window" in settings and not settings["use_sliding_window"]
    if switched_off or (types and "sliding_attention" not in types):
        return None
    return settings.get("sliding_window") or None
