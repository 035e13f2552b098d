"""Dense classes as the other half of MoE classes: what remains of an MoE without its experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from smolmoe.families.common import COMMON
from smolmoe.families.dense.llama import LLAMA_MLP
from smolmoe.families.types import MlpLayout

Settings = dict[str, Any]


@dataclass(frozen=True)
class DenseForm:
    """A dense class.

    Attributes:
        config: its config.json without the FFN's width, which goes under `width_key` (None: the class derives it).
        mlp: the location of its FFN.
        zero_biases: projections of the attention that have a bias there and none in the MoE.
        dropped: suffixes of tensors that are zero and that the class does not have.
    """

    config: Settings
    mlp: MlpLayout
    width_key: str | None = "intermediate_size"
    zero_biases: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


def form(settings: Settings, model_type: str, *, zero_biases: tuple[str, ...] = (), **own: Any) -> DenseForm:
    """One of the Llama-like classes, with the MoE's common settings and some that only it has."""
    from smolmoe.families.architecture import architecture_of

    config = {
        "architectures": [architecture_of({"model_type": model_type})],
        "model_type": model_type,
        "transformers_version": settings["transformers_version"],
        **{key: settings[key] for key in COMMON},
        "num_key_value_heads": settings["num_key_value_heads"],
        "head_dim": settings.get("head_dim") or settings["hidden_size"] // settings["num_attention_heads"],
        "hidden_act": settings["hidden_act"],
        **own,
    }
    return DenseForm(config, LLAMA_MLP, zero_biases=zero_biases)


def llama(settings: Settings, *, attention_bias: bool = False, **own: Any) -> DenseForm:
    return form(settings, "llama", attention_bias=attention_bias, mlp_bias=False, **own)


def qwen2(settings: Settings, *, biased: bool, **own: Any) -> DenseForm:
    return form(
        settings,
        "qwen2",
        zero_biases=() if biased else ("q_proj", "k_proj", "v_proj"),
        **_windows(settings, settings.get("layer_types"), settings.get("sliding_window") or None),
        **own,
    )


def qwen3(
    settings: Settings, *, attention_bias: bool, layer_types: list[str] | None, window: int | None, **own: Any
) -> DenseForm:
    return form(settings, "qwen3", attention_bias=attention_bias, **_windows(settings, layer_types, window), **own)


def _windows(settings: Settings, layer_types: list[str] | None, window: int | None) -> Settings:
    types = layer_types or ["full_attention"] * settings["num_hidden_layers"]
    return {
        "layer_types": types,
        "use_sliding_window": "sliding_attention" in types,
        "sliding_window": window,
        "max_window_layers": 0,
    }


# Settings of the file or of the FFN, which is the MoE's.
_NOT_THE_TWINS = (
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "embedding_initializer_range",
    "intermediate_size",
    "model_type",
    "shared_intermediate_size",
    "transformers_version",
)


def twin(settings: Settings, model_type: str, **own: Any) -> DenseForm:
    """The dense class that differs from the MoE's only in its FFNs: the settings that both have are the same."""
    from transformers import AutoConfig

    from smolmoe.families import DENSE_FAMILIES
    from smolmoe.families.architecture import architecture_of

    family, known = DENSE_FAMILIES[model_type], AutoConfig.for_model(model_type).to_dict()
    config = {
        **{key: settings[key] for key in known if key in settings and key not in _NOT_THE_TWINS},
        "architectures": [architecture_of({"model_type": model_type})],
        "model_type": model_type,
        "transformers_version": settings["transformers_version"],
        **family.plain_width,
        **own,
    }
    return DenseForm(config, family.mlp, family.width_key)
