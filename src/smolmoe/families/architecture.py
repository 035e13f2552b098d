"""The class of a config.json without `architectures`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smolmoe.families import MOE_TARGETS

_KNOWN = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "smolmoe": MOE_TARGETS["generic"].architecture,
    **{name: target.architecture for name, target in MOE_TARGETS.items() if name != "generic"},
}


def architecture_of(config: Mapping[str, Any]) -> str | None:
    """The class named in a config; if it names none, transformers' causal LM for its model type.

    None if there is no such class. transformers loads either by the model type.
    """
    named = config.get("architectures")
    if isinstance(named, str):
        return named
    if isinstance(named, list | tuple) and named and isinstance(named[0], str):
        return named[0]
    model_type = str(config.get("model_type"))
    if model_type in _KNOWN:  # known without importing transformers
        return _KNOWN[model_type]
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    found = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    return found if isinstance(found, str) else None
