"""The settings of a known family's config.json, with explicit defaults, without importing transformers.

Importing transformers' config classes takes longer than converting a small model does. Only plain cases are handled
here; all others use the class itself. A test compares the two.
"""

from __future__ import annotations

from typing import Any

from smolmoe.families import DENSE_FAMILIES

# Sizes have no sensible default: a config that omits one is not a plain case.
_STATED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "rms_norm_eps",
)


def known_settings(config: dict[str, Any]) -> dict[str, Any] | None:
    """The settings transformers' config class would read from a config.json; None if only the class can tell.

    Args:
        config: the parsed config.json.
    """
    family = DENSE_FAMILIES.get(str(config.get("model_type")))
    if family is None or not family.defaults or any(config.get(key) is None for key in _STATED):
        return None
    if any(isinstance(config.get(key), list) for key in (*_STATED, "num_key_value_heads", "head_dim")):
        return None
    rope = _rope(config, family.defaults["rope_theta"])
    # Only the class knows whether null is valid for a setting with a default, and which layer types exist.
    if any(key in config and config[key] is None and value is not None for key, value in family.defaults.items()):
        return None
    if not {*(config.get("layer_types") or ())} <= {"full_attention", "sliding_attention"}:
        return None
    if rope is None or _is_quantised(config) or (family.mlp_bias and config.get(family.mlp_bias)):
        return None
    settings = {"architectures": None, **family.defaults, **config, "rope_parameters": rope}
    settings["num_key_value_heads"] = settings.get("num_key_value_heads") or settings["num_attention_heads"]
    if "head_dim" in family.defaults:
        settings["head_dim"] = settings.get("head_dim") or settings["hidden_size"] // settings["num_attention_heads"]
    if family.windows == "layers":
        settings["sliding_window"] = settings["sliding_window"] if settings["use_sliding_window"] else None
        settings["layer_types"] = settings.get("layer_types") or _layer_types(settings)
    for key in ("rope_theta", "rope_scaling"):
        settings.pop(key, None)
    return settings


def _is_quantised(config: dict[str, Any]) -> bool:
    return bool(config.get("quantization_config") or config.get("compression_config"))


def _rope(config: dict[str, Any], default_theta: float) -> dict[str, Any] | None:
    """Rope parameters in today's form, from it or from plain `rope_theta`; None for older forms of scaling."""
    if config.get("rope_scaling") is not None:
        return None
    rope = config.get("rope_parameters")
    if rope is None:
        return {"rope_theta": config.get("rope_theta", default_theta), "rope_type": "default"}
    stated = isinstance(rope, dict) and rope.get("rope_type") == "default" and "rope_theta" in rope
    return dict(rope) if stated else None


def _layer_types(settings: dict[str, Any]) -> list[str]:
    windowed = settings["sliding_window"] is not None
    return [
        "sliding_attention" if windowed and i >= settings["max_window_layers"] else "full_attention"
        for i in range(settings["num_hidden_layers"])
    ]
