"""The dense class that computes everything in an MoE except its experts, and the matching config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from smolmoe.errors import TargetError
from smolmoe.families import DENSE_FAMILIES, MlpLayout
from smolmoe.families.architecture import architecture_of
from smolmoe.families.dense.llama import LLAMA_MLP
from smolmoe.families.fit import COMMON
from smolmoe.surgery.experts.moe_files import GENERIC, MoeFiles

# Settings of the file or of the FFN, which is the MoE's.
_NOT_THE_TWINS = (
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "embedding_initializer_range",
    "intermediate_size",
    "model_type",
    "transformers_version",
)
_QKV_BIASES = ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias")


@dataclass(frozen=True)
class DenseForm:
    """A dense class.

    Attributes:
        config: its config.json without the FFN's width, which goes under `width_key` (None: the class derives it).
        mlp: the location of its FFN.
        zero_biases: projections of the attention that have a bias there and none in the MoE.
        dropped: suffixes of tensors that are zero and that the class does not have.
    """

    config: dict[str, Any]
    mlp: MlpLayout
    width_key: str | None = "intermediate_size"
    zero_biases: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


def dense_form(files: MoeFiles) -> DenseForm:
    """The dense class of an MoE without its experts.

    Raises:
        TargetError: no dense class computes the same function, or not with these settings; states why.
        SourceError: a config that its class cannot load.
    """
    from smolmoe.moe.loading import load_config

    settings = load_config(files.folder).to_dict()
    if files.kind not in _FORMS:
        raise TargetError(
            "no dense class of transformers has this class's attention and norms.",
            field="model_type",
            value=files.kind,
            fix="Its experts can only be extracted as a smaller model of the same class.",
        )
    form = _plainest(files, _FORMS[files.kind](settings), settings)
    dtype = files.config.get("dtype") or files.config.get("torch_dtype")
    return replace(form, config=form.config | ({"dtype": dtype} if dtype else {}))


def _native(settings: dict[str, Any], model_type: str, **own: Any) -> dict[str, Any]:
    architecture = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "olmo2": "Olmo2"}
    heads = settings["num_attention_heads"]
    return {
        "architectures": [f"{architecture[model_type]}ForCausalLM"],
        "model_type": model_type,
        "transformers_version": settings["transformers_version"],
        **{key: settings[key] for key in COMMON},
        "num_key_value_heads": settings["num_key_value_heads"],
        "head_dim": settings.get("head_dim") or settings["hidden_size"] // heads,
        "hidden_act": settings["hidden_act"],
        **own,
    }


def _llama(settings: dict[str, Any], *, attention_bias: bool = False, **own: Any) -> DenseForm:
    config = _native(settings, "llama", attention_bias=attention_bias, mlp_bias=False, **own)
    return DenseForm(config, LLAMA_MLP)


def _mixtral(settings: dict[str, Any]) -> DenseForm:
    window = settings["sliding_window"]
    if window is None:
        return _llama(settings)
    return DenseForm(_native(settings, "mistral", sliding_window=window), LLAMA_MLP)


def _qwen2(settings: dict[str, Any], *, biased: bool, **own: Any) -> DenseForm:
    layers = settings["num_hidden_layers"]
    window = settings.get("sliding_window") or None
    types = settings.get("layer_types") or ["full_attention"] * layers
    config = _native(
        settings,
        "qwen2",
        layer_types=types,
        use_sliding_window="sliding_attention" in types,
        sliding_window=window,
        max_window_layers=0,
        **own,
    )
    return DenseForm(config, LLAMA_MLP, zero_biases=() if biased else ("q_proj", "k_proj", "v_proj"))


def _plainest(files: MoeFiles, form: DenseForm, settings: dict[str, Any]) -> DenseForm:
    """Llama or Mistral instead of Qwen2 where its biases are zero: Qwen2's type has its own pre-tokenizer."""
    if files.kind == GENERIC or form.config["model_type"] != "qwen2":
        return form
    biases = [name for name in files.checkpoint.tensors if name.endswith(_QKV_BIASES)]
    windowed = set(form.config["layer_types"])
    if len(windowed) > 1 or any(bool(files.checkpoint.read(name).any()) for name in biases):
        return form
    rope = form.config["rope_parameters"]
    if windowed == {"full_attention"}:
        plain = _llama(settings, rope_parameters=rope)
    else:
        window = form.config["sliding_window"]
        plain = DenseForm(_native(settings, "mistral", sliding_window=window, rope_parameters=rope), LLAMA_MLP)
    return replace(plain, dropped=_QKV_BIASES)


def _qwen2_moe(settings: dict[str, Any]) -> DenseForm:
    return _qwen2(settings, biased=bool(settings["qkv_bias"]))


def _qwen3(settings: dict[str, Any], *, attention_bias: bool, window: int | None = None, **own: Any) -> DenseForm:
    config = _native(
        settings,
        "qwen3",
        attention_bias=attention_bias,
        layer_types=["sliding_attention" if window else "full_attention"] * settings["num_hidden_layers"],
        use_sliding_window=window is not None,
        sliding_window=window,
        max_window_layers=0,
        **own,
    )
    return DenseForm(config, LLAMA_MLP)


def _qwen3_moe(settings: dict[str, Any]) -> DenseForm:
    window = settings["sliding_window"] if settings["use_sliding_window"] else None
    return _qwen3(settings, attention_bias=bool(settings["attention_bias"]), window=window)


def _granite(settings: dict[str, Any]) -> DenseForm:
    head_dim = settings.get("head_dim") or settings["hidden_size"] // settings["num_attention_heads"]
    plain = {
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
        "attention_multiplier": head_dim**-0.5,
    }
    for key, value in plain.items():
        if abs(settings[key] - value) > 1e-6 * value:
            raise TargetError(
                f"only dense classes with multipliers compute this; Llama's value is {value:g}.",
                field=key,
                value=settings[key],
                fix="Extract two or more experts, which stay in the class.",
            )
    return _llama(settings, attention_bias=bool(settings["attention_bias"]), head_dim=head_dim)


def _glm4_moe(settings: dict[str, Any]) -> DenseForm:
    rope = dict(settings["rope_parameters"])
    rotated = rope.pop("partial_rotary_factor", settings.get("partial_rotary_factor", 0.5))
    if rotated != 1.0:
        raise TargetError(
            "only part of each head is rotated, which Llama, Qwen2 and Qwen3 do not support.",
            field="partial_rotary_factor",
            value=rotated,
            fix="Extract two or more experts, which stay in the class.",
        )
    biased = bool(settings["attention_bias"])  # on q, k and v
    if settings["use_qk_norm"]:
        form = _qwen3(settings, attention_bias=biased, rope_parameters=rope)
        return replace(form, zero_biases=("o_proj",) if biased else ())
    return _qwen2(settings, biased=True, rope_parameters=rope) if biased else _llama(settings, rope_parameters=rope)


def _flex_olmo(settings: dict[str, Any]) -> DenseForm:
    return DenseForm(_native(settings, "olmo2", attention_bias=bool(settings["attention_bias"])), LLAMA_MLP)


def _generic(settings: dict[str, Any]) -> DenseForm:
    from smolmoe.families.detect import find_mlp

    text = dict(settings["text_config"])
    # Training and generation use the outer model's.
    text |= {k: settings[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")}
    for key in ("_name_or_path", "dtype", "_experts_implementation", "experts_implementation"):
        text.pop(key, None)
    text["transformers_version"] = settings["transformers_version"]
    config = _text_config(text)
    text["architectures"] = text.get("architectures") or [_architecture(config)]
    family = DENSE_FAMILIES.get(text["model_type"])
    known = family is not None and not (family.mlp_bias and text.get(family.mlp_bias))
    mlp = family.mlp if family is not None and known else find_mlp(config)
    width = next((key for key in ("intermediate_size", "n_inner") if key in text), None)
    return DenseForm(text, mlp, width)


def _text_config(text: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(**text)


def _architecture(config: Any) -> str:
    from smolmoe.moe.loading import causal_lm_class

    return str(causal_lm_class(config).__name__)


def _twin(settings: dict[str, Any], model_type: str, **own: Any) -> DenseForm:
    """The dense class that differs from the MoE's only in its FFNs."""
    from transformers import AutoConfig

    known = AutoConfig.for_model(model_type).to_dict()
    config = {
        **{key: settings[key] for key in known if key in settings and key not in _NOT_THE_TWINS},
        "architectures": [architecture_of({"model_type": model_type})],
        "model_type": model_type,
        "transformers_version": settings["transformers_version"],
        **own,
    }
    return DenseForm(config, DENSE_FAMILIES[model_type].mlp)


def _cohere2_moe(settings: dict[str, Any]) -> DenseForm:
    dense = [i for i, kind in enumerate(settings["mlp_layer_types"]) if kind == "dense"]
    unrotated = any(settings["layer_types"][i] == "full_attention" for i in dense)
    unlike = {
        "rms_norm_eps": settings["rms_norm_eps"] is not None,
        "head_dim": settings["head_dim"] != settings["hidden_size"] // settings["num_attention_heads"],
        "prefix_dense_sliding_window_pattern": settings["prefix_dense_sliding_window_pattern"] == 1 and unrotated,
    }
    for key in (key for key, found in unlike.items() if found):
        raise TargetError(
            "no dense class of transformers has this setting.",
            field=key,
            value=settings[key],
            fix="Extract two or more experts, which stay in the class.",
        )
    width = settings["prefix_dense_intermediate_size"] if dense else None
    return _twin(settings, "cohere2", **({"intermediate_size": width} if width else {}))


_FORMS: dict[str, Callable[[dict[str, Any]], DenseForm]] = {
    "mixtral": _mixtral,
    "granitemoeshared": _granite,
    "qwen2_moe": _qwen2_moe,
    "qwen3_moe": _qwen3_moe,
    "glm4_moe": _glm4_moe,
    "flex_olmo": _flex_olmo,
    "cohere2_moe": _cohere2_moe,
    "deepseek_v3": partial(_twin, model_type="youtu"),
    "ernie4_5_moe": partial(_twin, model_type="ernie4_5"),
    "hunyuan_v1_moe": partial(_twin, model_type="hunyuan_v1_dense"),
    "lfm2_moe": partial(_twin, model_type="lfm2", block_auto_adjust_ff_dim=False),
    "qwen3_5_moe_text": partial(_twin, model_type="qwen3_5_text"),
    GENERIC: _generic,
}
