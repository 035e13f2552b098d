"""config.json and the other JSON files of a model folder, read and checked before anything is made of them.

What is checked is the kind of each setting that this package or the model's class computes with. That they fit each
other and the weights is for their readers to say.
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
# Files that hold one JSON object each, where a model has them. Vocabularies take long to read: who loads them says.
_OBJECTS = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_LARGEST = 1 << 40  # beyond any size of a model, and below what 64 bits hold when two are multiplied
_FIX = "Set it to what the model has, or download config.json again."
_DTYPE = re.compile(r"(torch\.)?(auto|half|float|double|bool|bfloat16|float(16|32|64|[48]_\w+)|u?int(4|8|16|32|64))")


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
    return without_code(config)


def check_other_files(folder: Path) -> None:
    """See that the JSON files that stand with a config hold objects, and their token ids are numbers.

    Raises:
        SourceError: naming the file, and the key at fault.
    """
    for name in _OBJECTS:
        if (folder / name).is_file():
            found = read_object(folder / name, error=SourceError, fix="Download it again.")
            _check(found, name)


def check_counts(config: Mapping[str, Any]) -> None:
    """See that heads share keys and values evenly, and that no more experts are chosen than there are.

    Args:
        config: with its class's defaults; of a model that is to be run or converted.

    Raises:
        SourceError
    """
    heads, kv = _one(config, "num_attention_heads", "n_head"), _one(config, "num_key_value_heads")
    if heads is not None and kv is not None and heads % kv:
        raise _contradiction("num_key_value_heads", kv, f"must divide num_attention_heads ({heads})")
    experts, top_k = _one(config, "num_local_experts", "num_experts", "n_routed_experts"), _one(config, _TOP_K)
    if experts is not None and top_k is not None and top_k > experts:
        raise _contradiction(_TOP_K, top_k, f"must be at most the number of experts ({experts})")


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
    layers, kinds = _one(config, "num_hidden_layers", "n_layer"), config.get("layer_types")
    if layers is not None and kinds is not None and len(kinds) != layers:
        reason = f"must name as many layers as there are ({layers}), not {len(kinds)}"
        raise _contradiction(f"{at}layer_types", kinds, reason)
    if config.get("model_type") == "smolmoe":
        for key in ("text_config", "moe_layers", "layers_module", "mlp_module", "num_experts", _TOP_K):
            if config.get(key) is None:
                raise _contradiction(at + key, None, "must be there, as smolmoe writes it")


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


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _ids(value: Any) -> bool:
    return _whole(value, -1) or (isinstance(value, list) and all(_whole(one, 0) for one in value))


def _rope(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    inner = [one for one in value.values() if isinstance(one, dict)]  # one for each kind of layer
    return all(_rope(one) for one in inner) and all(
        _finite(value[key]) and value[key] > 0 for key in ("rope_theta", "factor") if value.get(key) is not None
    )


def _kinds(kind: _Kind, *keys: str) -> dict[str, _Kind]:
    return dict.fromkeys(keys, kind)


_TOP_K = "num_experts_per_tok"
_KINDS: dict[str, _Kind] = {
    **_kinds(
        _Kind("a whole number from 1 on", lambda value: _whole(value, 1), null=False),
        *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
        *("n_embd", "n_layer", "n_head", "n_positions", "max_position_embeddings"),
    ),
    _TOP_K: _Kind("a whole number from 1 on", lambda value: _whole(value, 1)),
    **_kinds(
        _Kind("a whole number from 1 on, or one for each layer", lambda value: _sized(value, 1)),
        *("intermediate_size", "num_key_value_heads", "n_inner", "moe_intermediate_size"),
    ),
    **_kinds(
        _Kind("a whole number from 0 on", lambda value: _sized(value, 0)),
        *("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "n_shared_experts"),
        *("shared_expert_intermediate_size", "shared_intermediate_size", "first_k_dense_replace"),
        *("max_window_layers", "decoder_sparse_step", "head_dim"),
    ),
    "sliding_window": _Kind("a whole number of tokens, or null", lambda value: _whole(value, -1)),
    **_kinds(
        _Kind("a list of whole numbers", lambda value: isinstance(value, list) and all(_whole(v, 0) for v in value)),
        *("moe_layers", "mlp_only_layers"),
    ),
    **_kinds(
        _Kind("a finite number", _finite),
        *("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "rope_theta", "initializer_range"),
        *("attention_dropout", "mlp_dropout", "partial_rotary_factor", "router_aux_loss_coef"),
        *("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"),
        *("routed_scaling_factor", "temperature", "top_p", "repetition_penalty", "model_max_length"),
    ),
    **_kinds(
        _Kind("true or false", lambda value: type(value) is bool),
        *("tie_word_embeddings", "attention_bias", "use_cache", "use_sliding_window", "is_encoder_decoder"),
        *("norm_topk_prob", "output_router_logits", "gated", "do_sample"),
    ),
    **_kinds(
        _Kind("text", lambda value: isinstance(value, str)),
        *("model_type", "hidden_act", "hidden_activation", "activation_function", "layers_module", "mlp_module"),
        *("scoring_func", "tokenizer_class", "padding_side", "truncation_side"),
    ),
    **_kinds(
        _Kind("a token id, or a list of them", _ids),
        *("bos_token_id", "eos_token_id", "pad_token_id"),
    ),
    **_kinds(_Kind("a list of texts", _texts), "architectures", "layer_types"),
    "chat_template": _Kind("text, or a list of named texts", lambda value: isinstance(value, str | list | dict)),
    **_kinds(
        _Kind("an object whose rope_theta and factor are positive numbers", _rope), "rope_parameters", "rope_scaling"
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
