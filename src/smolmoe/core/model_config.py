"""config.json and the other JSON files of a model folder, read and checked before they are used.

The type and range of each setting that this package or the model's class computes with are checked. Whether they fit
each other and the weights is checked where they are used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from smolmoe.core.json_text import read_object
from smolmoe.core.model_code import without_code
from smolmoe.errors import SourceError

CONFIG = "config.json"
# The keys under which classes have E and K.
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
TOP_KS = ("num_experts_per_tok", "moe_topk", "moe_k")
# Files that hold one JSON object each, where a model has them. Vocabularies take long to read: who loads them says.
_OBJECTS = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_LARGEST = 1 << 40  # beyond any size of a model, and below what 64 bits hold when two are multiplied
# Taken as rows of the embedding, unlike bos_token_id, which some classes of transformers have beyond it by default.
_TOKENS_USED = ("eos_token_id", "pad_token_id")
# Those that transformers need not be imported for, which takes a second.
_ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
# "mrope" and "su" are names that classes of transformers replace by others.
_ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "mrope", "su")
_UNATTENDING = {"linear_attention", "conv"}
_FIX = "Set it to what the model has, or download config.json again."
_DTYPE = re.compile(r"(torch\.)?(half|float|double|bool|bfloat16|float(16|32|64|[48]_\w+)|u?int(4|8|16|32|64))")


def read_config(folder: Path, field: str = "source") -> dict[str, Any]:
    """The settings in a folder's config.json, without those that name code.

    Raises:
        SourceError: no such file, no JSON object, or a setting of a kind that it cannot have, by its name.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise SourceError("no config.json in this folder.", field=field, value=str(folder), fix="Name a model folder.")
    config = read_object(path, error=SourceError, fix="Download it again.")
    _check(config, CONFIG)
    _check_token_ids(config, CONFIG, _vocabulary(config))
    if config.get("text_config"):
        _check_token_ids(config["text_config"], CONFIG, _vocabulary(config), "text_config.")
    return without_code(config)


def check_other_files(folder: Path, config: Mapping[str, Any]) -> None:
    """See that the JSON files that stand with a config hold objects, and their token ids are of its vocabulary.

    Raises:
        SourceError: naming the file, and the key at fault.
    """
    for name in _OBJECTS:
        if (folder / name).is_file():
            found = read_object(folder / name, error=SourceError, fix="Download it again.")
            _check(found, name)
            _check_token_ids(found, name, _vocabulary(config))


def check_counts(config: Mapping[str, Any]) -> None:
    """See that heads share keys and values evenly, experts their groups, and that no more are chosen than there are.

    Args:
        config: with its class's defaults; of a model that is to be run or converted.

    Raises:
        SourceError
    """
    heads, kv = _one(config, "num_attention_heads", "n_head"), _one(config, "num_key_value_heads")
    if heads is not None and kv is not None and heads % kv:
        raise _contradiction("num_key_value_heads", kv, f"must divide num_attention_heads ({heads})")
    experts, top_k = _one(config, *EXPERT_COUNTS), _one(config, *TOP_KS)
    if experts is not None and top_k is not None and top_k > experts:
        key = next(key for key in TOP_KS if config.get(key) == top_k)
        raise _contradiction(key, top_k, f"must be at most the number of experts ({experts})")
    groups, chosen = _one(config, "n_group"), _one(config, "topk_group")
    if config.get("topk_method") == "greedy" or groups is None:  # groups that nobody looks at
        return
    if experts is not None and experts % groups:
        raise _contradiction("n_group", groups, f"must divide the number of experts ({experts})")
    if chosen is not None and chosen > groups:
        raise _contradiction("topk_group", chosen, f"must be at most n_group ({groups})")


def expert_counts(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """E and K; None if config.json does not have both, as that of a dense model."""
    experts, top_k = _one(config, *EXPERT_COUNTS), _one(config, *TOP_KS)
    return None if experts is None or top_k is None else (experts, top_k)


def check_decodes(folder: Path, field: str = "source") -> None:
    """See that a layer attends to earlier tokens, without which transformers generates nothing: it counts them there.

    Raises:
        SourceError
    """
    config = read_config(folder, field)
    text = config.get("text_config") or {}
    kinds = text.get("layer_types") or config.get("layer_types")
    if kinds and {*kinds} <= _UNATTENDING:
        raise SourceError(
            f"in {CONFIG}: no layer has attention, and transformers generates with a cache only where one has.",
            field="layer_types",
            value=", ".join(sorted({*kinds})),
            fix="Use a model that has such a layer. `verify='none'` converts one without, since it generates nothing.",
        )


def _contradiction(key: str, value: object, reason: str) -> SourceError:
    return SourceError(f"in {CONFIG}: {reason}.", field=key, value=value, fix=_FIX)


def _check(config: Mapping[str, Any], file: str, at: str = "") -> None:
    for key, value in config.items():
        if (kind := _KINDS.get(key)) is not None and not kind.holds(value):
            raise SourceError(f"in {file}: must be {kind.words}.", field=at + key, value=value, fix=_FIX)
    if file == CONFIG:
        _check_lengths(config, at)
    if isinstance(config.get("text_config"), dict):
        _check(config["text_config"], file, f"{at}text_config.")


def _check_lengths(config: Mapping[str, Any], at: str) -> None:
    layers = _one(config, "num_hidden_layers", "n_layer")
    for key in ("layer_types", "layer_rope_theta", "no_rope_layers"):
        found = config.get(key)
        # transformers takes an empty `no_rope_layers` for its default.
        if layers is not None and isinstance(found, list) and len(found) != layers and (found or key == "layer_types"):
            reason = f"must name as many layers as there are ({layers}), not {len(found)}"
            raise _contradiction(at + key, found, reason)
    if config.get("model_type") == "smolmoe":
        for key in ("text_config", "moe_layers", "layers_module", "mlp_module", "num_experts", "num_experts_per_tok"):
            if config.get(key) is None:
                raise _contradiction(at + key, None, "must be there, as smolmoe writes it")


def _vocabulary(config: Mapping[str, Any]) -> int | None:
    return _one(config.get("text_config") or {}, "vocab_size") or _one(config, "vocab_size")


def _check_token_ids(config: Mapping[str, Any], file: str, vocabulary: int | None, at: str = "") -> None:
    for key in _TOKENS_USED if vocabulary is not None else ():
        found = config.get(key)
        if any(one >= vocabulary for one in (found if isinstance(found, list) else [found]) if one is not None):
            reason = f"in {file}: must be within the vocabulary of {vocabulary} tokens"
            raise SourceError(f"{reason}.", field=at + key, value=found, fix=_FIX)


def _one(config: Mapping[str, Any], *keys: str) -> int | None:
    """The first of these sizes that is there, as one positive number."""
    return next((config[key] for key in keys if isinstance(config.get(key), int) and config[key] > 0), None)


class _Kind:
    """What a setting may be: `holds` says whether a value is of it, `words` what it is."""

    def __init__(self, words: str, holds: Callable[[Any], bool], *, null: bool = True):
        self.words = words
        self.holds: Callable[[Any], bool] = (lambda value: value is None or holds(value)) if null else holds


def _whole(value: Any, least: int) -> bool:
    return type(value) is int and least <= value < _LARGEST


def _sized(value: Any, least: int) -> bool:
    """A number, or one for each layer, as some classes have it."""
    return _whole(value, least) or (isinstance(value, list) and all(_whole(one, 0) for one in value))


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _above_zero(value: Any) -> bool:
    return _finite(value) and value > 0


def _share(value: Any) -> bool:
    return _finite(value) and 0 <= value <= 1


def _activation(value: Any) -> bool:
    if value in _ACTIVATIONS:
        return True
    if not isinstance(value, str):
        return False
    from transformers.activations import ACT2FN

    return value in ACT2FN


def _rope_type(value: Any) -> bool:
    if value is None or value in _ROPE_TYPES:
        return True
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    return isinstance(value, str) and value in ROPE_INIT_FUNCTIONS


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _ids(value: Any) -> bool:
    return _whole(value, -1) or (isinstance(value, list) and all(_whole(one, 0) for one in value))


def _rope(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    inner = [one for one in value.values() if isinstance(one, dict)]  # one for each kind of layer
    types = [value.get(key) for key in ("rope_type", "type")]
    numbers = [value[key] for key in ("rope_theta", "factor") if value.get(key) is not None]
    return all(map(_rope, inner)) and all(map(_rope_type, types)) and all(map(_above_zero, numbers))


def _kinds(kind: _Kind, *keys: str) -> dict[str, _Kind]:
    return dict.fromkeys(keys, kind)


_KINDS: dict[str, _Kind] = {
    **_kinds(
        _Kind("a whole number from 1 on", lambda value: _whole(value, 1), null=False),
        *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
        *("n_embd", "n_layer", "n_head", "n_positions", "max_position_embeddings"),
    ),
    **_kinds(_Kind("a whole number from 1 on", lambda value: _whole(value, 1)), "num_experts_per_tok", "moe_k"),
    **_kinds(
        _Kind("a whole number from 1 on, or one for each layer", lambda value: _sized(value, 1)),
        *("intermediate_size", "num_key_value_heads", "n_inner", "moe_intermediate_size", "head_dim", "moe_topk"),
    ),
    **_kinds(
        _Kind("a whole number from 0 on", lambda value: _sized(value, 0)),
        *("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "n_shared_experts"),
        *("shared_expert_intermediate_size", "shared_intermediate_size", "first_k_dense_replace"),
        *("max_window_layers", "decoder_sparse_step"),
    ),
    "sliding_window": _Kind("a whole number of tokens, or null", lambda value: _whole(value, -1)),
    **_kinds(
        _Kind("a list of whole numbers", lambda value: isinstance(value, list) and all(_whole(v, 0) for v in value)),
        *("moe_layers", "mlp_only_layers"),
    ),
    **_kinds(
        _Kind("a number above 0", _above_zero),
        *("rope_theta", "logits_scaling", "repetition_penalty"),
    ),
    **_kinds(  # a norm without a constant fails on a row of zeros alone
        _Kind("a number from 0 on", lambda value: _finite(value) and value >= 0),
        *("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "initializer_range"),
    ),
    **_kinds(
        _Kind("a number from 0 to 1", _share),
        *("attention_dropout", "mlp_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "hidden_dropout"),
        *("partial_rotary_factor", "top_p"),
    ),
    **_kinds(
        _Kind("a finite number", _finite),
        *("router_aux_loss_coef", "embedding_multiplier", "attention_multiplier", "residual_multiplier"),
        *("routed_scaling_factor", "temperature", "model_max_length"),
    ),
    **_kinds(
        _Kind("true or false", lambda value: type(value) is bool),
        *("tie_word_embeddings", "attention_bias", "use_cache", "use_sliding_window", "is_encoder_decoder"),
        *("norm_topk_prob", "output_router_logits", "gated", "do_sample"),
    ),
    **_kinds(
        _Kind("text", lambda value: isinstance(value, str)),
        *("model_type", "layers_module", "mlp_module"),
        *("scoring_func", "tokenizer_class", "padding_side", "truncation_side"),
    ),
    **_kinds(
        _Kind("the name of an activation that transformers has, such as silu", _activation),
        *("hidden_act", "hidden_activation", "activation_function"),
    ),
    **_kinds(_Kind("a token id, or a list of them", _ids), "bos_token_id", *_TOKENS_USED),
    **_kinds(_Kind("a list of texts", _texts), "architectures", "layer_types"),
    "chat_template": _Kind("text, or a list of named texts", lambda value: isinstance(value, str | list | dict)),
    **_kinds(
        _Kind("an object with a rope_type that transformers has, rope_theta and factor above 0", _rope),
        *("rope_parameters", "rope_scaling"),
    ),
    **_kinds(
        _Kind(
            "the name of a dtype, such as bfloat16", lambda v: isinstance(v, str) and _DTYPE.fullmatch(v) is not None
        ),
        *("torch_dtype", "dtype"),
    ),
    **_kinds(_Kind("an object", lambda value: isinstance(value, dict)), "auto_map", "text_config"),
    "quantization_config": _Kind("an object that is not empty", lambda value: isinstance(value, dict) and bool(value)),
}
