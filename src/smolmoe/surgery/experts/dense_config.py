"""The dense class that computes everything in an MoE except its experts, and the matching config."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from smolmoe.errors import TargetError
from smolmoe.families import DENSE_FAMILIES, MOE_TARGETS
from smolmoe.families.fit import GENERIC
from smolmoe.families.forms import DenseForm, form, llama, twin
from smolmoe.families.spec import ffn_of
from smolmoe.surgery.experts.moe_files import MoeFiles

_QKV_BIASES = ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias")


def dense_form(files: MoeFiles) -> DenseForm:
    """The dense class of an MoE without its experts.

    Raises:
        TargetError: no dense class computes the same function, or not with these settings; states why.
        SourceError: a config that its class cannot load.
    """
    from smolmoe.moe.loading import load_config

    settings = load_config(files.folder).to_dict()
    found = _plainest(files, _form(files.kind, settings), settings)
    dtype = files.config.get("dtype") or files.config.get("torch_dtype")
    return replace(found, config=found.config | ({"dtype": dtype} if dtype else {}))


def _form(kind: str, settings: dict[str, Any]) -> DenseForm:
    target = MOE_TARGETS.get(kind)
    if kind == GENERIC:
        return _generic(settings)
    if target is not None and target.dense is not None:
        return target.dense(settings)
    if target is not None and target.twin is not None:
        return twin(settings, target.twin)
    raise TargetError(
        "no dense class of transformers has this class's attention and norms.",
        field="model_type",
        value=kind,
        fix="Its experts can only be extracted as a smaller model of the same class.",
    )


def _plainest(files: MoeFiles, found: DenseForm, settings: dict[str, Any]) -> DenseForm:
    """Llama or Mistral instead of Qwen2 where its biases are zero: Qwen2's type has its own pre-tokenizer."""
    if files.kind == GENERIC or found.config["model_type"] != "qwen2":
        return found
    biases = [name for name in files.checkpoint.tensors if name.endswith(_QKV_BIASES)]
    windowed = set(found.config["layer_types"])
    if len(windowed) > 1 or any(bool(files.checkpoint.read(name).any()) for name in biases):
        return found
    rope = found.config["rope_parameters"]
    if windowed == {"full_attention"}:
        plain = llama(settings, rope_parameters=rope)
    else:
        window = found.config["sliding_window"]
        plain = form(settings, "mistral", sliding_window=window, rope_parameters=rope)
    return replace(plain, dropped=_QKV_BIASES)


def _generic(settings: dict[str, Any]) -> DenseForm:
    text = dict(settings["text_config"])
    # Training and generation use the outer model's.
    text |= {k: settings[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")}
    for key in ("_name_or_path", "dtype", "_experts_implementation", "experts_implementation"):
        text.pop(key, None)
    text["transformers_version"] = settings["transformers_version"]
    config = _text_config(text)
    text["architectures"] = text.get("architectures") or [_architecture(config)]
    family = DENSE_FAMILIES.get(text["model_type"])
    mlp, width = ffn_of(config, family)
    if family is not None:
        return DenseForm({**text, **family.plain_width, family.width_key: width}, mlp, family.width_key)
    return DenseForm(text, mlp, next((key for key in ("intermediate_size", "n_inner") if key in text), None))


def _text_config(text: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(**text)


def _architecture(config: Any) -> str:
    from smolmoe.moe.loading import causal_lm_class

    return str(causal_lm_class(config).__name__)
