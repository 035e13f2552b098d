"""From a config to what surgery needs to know about the model: known families are built in, others are detected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from smolmoe.core.model_config import check_counts, read_config
from smolmoe.errors import SourceError
from smolmoe.families import DENSE_FAMILIES
from smolmoe.families.architecture import architecture_of
from smolmoe.families.settings import known_settings
from smolmoe.families.types import DenseFamily, DenseSpec, MlpLayout

_MOE_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "moe_layers")


def read_spec(folder: Path) -> DenseSpec:
    """Describe the dense model in a folder, from its config.json.

    Raises:
        SourceError: not a dense decoder-only causal language model, or its FFN cannot be found.
    """
    path = folder / "config.json"
    try:
        settings = known_settings(read_config(folder))
    except (ValueError, TypeError, AttributeError) as error:
        raise SourceError(f"not a config: {error}.", field="config.json", value=str(path)) from error
    if settings is not None:
        return _describe(SimpleNamespace(**settings), settings)
    from smolmoe.moe.loading import load_config

    config = load_config(folder, as_files=False)
    values = config.to_dict()
    values.pop("_name_or_path", None)  # do not record where it was loaded from
    return _describe(config, values)


def _describe(config: Any, settings: dict[str, Any]) -> DenseSpec:
    architecture = _refuse_what_is_not_dense(config)
    check_counts(settings)
    family = DENSE_FAMILIES.get(config.model_type)
    layers = int(config.num_hidden_layers)
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    hidden = int(config.hidden_size)
    mlp, ffn = ffn_of(config, family)
    return DenseSpec(
        family=family,
        model_type=config.model_type,
        architecture=architecture,
        hidden_size=hidden,
        ffn_size=ffn,
        layers=layers,
        vocab_size=int(config.vocab_size),
        heads=heads,
        kv_heads=int(_of_all_layers(config, "num_key_value_heads") or heads),
        head_dim=int(_of_all_layers(config, "head_dim") or (hidden // heads if heads else 0)),
        attention_bias=_attention_bias(config, family),
        qk_norm=family.qk_norm if family else "other",
        windows=_windows(config, family, layers),
        rotated=family.rotated(config) if family and family.rotated else (True,) * layers,
        rotary_share=config.rope_parameters.get("partial_rotary_factor", 1.0)
        if family and family.partial_rotary
        else 1.0,
        tied=bool(config.tie_word_embeddings),
        mlp=mlp,
        config=settings | {"architectures": [architecture]},
    )


def _of_all_layers(config: Any, key: str) -> Any:
    """A setting; None if it is absent, or if layers differ in it (Gemma 4: transformers raises an error)."""
    try:
        return getattr(config, key, None)
    except RuntimeError:
        return None


def _refuse_what_is_not_dense(config: Any) -> str:
    """The class of a dense decoder-only causal language model."""
    quantisation = getattr(config, "quantization_config", None) or getattr(config, "compression_config", None)
    if quantisation is not None:
        raise SourceError(
            "the source is quantised; quantised weights cannot be split or scaled.",
            field="quantization_config",
            value=_quantiser(quantisation),
            fix="Use `dequantise=True`, or the unquantised checkpoint."
            if _quantiser(quantisation) == "fp8"
            else "Use the unquantised checkpoint (fp32, fp16 or bf16).",
        )
    if getattr(config, "is_encoder_decoder", False):
        raise SourceError(
            "an encoder-decoder model; only decoder-only causal language models can be upcycled.",
            field="model_type",
            value=config.model_type,
        )
    experts = [key for key in _MOE_KEYS if (getattr(config, key, None) or 0) not in (0, 1)]
    blocks = getattr(config, "layers_block_type", None)  # Nemotron-H states experts also where no block has any
    if experts and (blocks is None or "moe" in blocks):
        raise SourceError(
            f"the source is already a mixture of experts ({experts[0]}={getattr(config, experts[0])}).",
            field="model_type",
            value=config.model_type,
            fix="Use the dense model it was made from.",
        )
    _refuse_a_composite(config)
    architecture = architecture_of({"architectures": config.architectures, "model_type": config.model_type})
    if architecture is None:
        raise SourceError(
            "config.json names no class (`architectures`), and transformers has no causal language model of this type.",
            field="model_type",
            value=config.model_type,
            fix="Use the causal LM checkpoint of a dense decoder-only model.",
        )
    if not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        raise SourceError(
            "not a causal language model with its head (the class must end in ForCausalLM or LMHeadModel).",
            field="architectures",
            value=architecture,
            fix="Encoder models and bare backbones cannot be upcycled; use the causal LM checkpoint of the family.",
        )
    return architecture


def _quantiser(settings: Any) -> str:
    """The quantisation method's name, from the config or its keys."""
    values = settings if isinstance(settings, dict) else vars(settings)
    named = values.get("quant_method") or values.get("quant_algo")
    if named is None and any(values.get(key) for key in ("load_in_4bit", "load_in_8bit")):
        named = "bitsandbytes"
    return str(getattr(named, "value", named) or f"keys {', '.join(sorted(map(str, values)))}")


def _refuse_a_composite(config: Any) -> None:
    """A vision-language or speech model: its text model is one part of it."""
    try:
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
    except ValueError:  # several text models
        text = None
    if text is config:
        return
    parts = sorted(key for key in getattr(config, "sub_configs", {}) if getattr(config, key, None) is not None)
    raise SourceError(
        f"a composite model ({', '.join(parts)}), not just a language model.",
        field="model_type",
        value=config.model_type,
        fix="Use `text_model=True`, which takes the text model, or write that as a folder with `smolmoe import`.",
    )


def ffn_of(config: Any, family: DenseFamily | None) -> tuple[MlpLayout, int]:
    """Where a dense model keeps its FFNs, and their width F."""
    if family is not None and not (family.mlp_bias and getattr(config, family.mlp_bias)):
        activation = getattr(config, family.activation, family.mlp.activation)
        dropout = getattr(config, family.mlp_dropout) if family.mlp_dropout else 0.0
        width = family.ffn_width(config) if family.ffn_width else getattr(config, family.width_key)
        return replace(family.mlp, activation=activation, dropout=dropout), int(width)
    from smolmoe.families.detect import find_mlp  # builds the class, so only if the family is not built in

    layout = find_mlp(config)
    width = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    return layout, int(width)


def _attention_bias(config: Any, family: DenseFamily | None) -> str:
    if family is None:
        return "other"
    if family.attention_bias == "config":
        return "qkvo" if config.attention_bias else "none"
    return family.attention_bias if isinstance(family.attention_bias, str) else family.attention_bias(config)


def _windows(config: Any, family: DenseFamily | None, layers: int) -> tuple[int | None, ...]:
    if family is not None and callable(family.windows):
        return family.windows(config)
    window = getattr(config, "sliding_window", None) or None
    if family is None or family.windows == "none" or window is None:
        return (None,) * layers
    if family.windows == "global":
        return (window,) * layers
    return tuple(window if kind == "sliding_attention" else None for kind in config.layer_types)
