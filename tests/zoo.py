"""Tiny random dense models of every family, untied and tied, with every attention feature that surgery looks at."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from tests.helpers import SIZES, save

D, F, LAYERS = 32, 48, 3
_COMMON = {**SIZES, "num_hidden_layers": LAYERS, "intermediate_size": F}
# Biases and norms are trained to be what they are; a fresh model has zeros and ones, which would hide mistakes.
_SPREAD = 0.2
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.3, 1.6],
    "long_factor": [1.0, 2.0, 4.0, 8.0],
}
_MINISTRAL_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 0.5,
    "llama_4_scaling_beta": 0.1,
}
_OLMO3_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]


def _olmo3(window: int, sliding_theta: float, full_theta: float) -> dict[str, Any]:
    ropes = {"sliding_attention": sliding_theta, "full_attention": full_theta}
    return {
        "sliding_window": window,
        "layer_types": _OLMO3_TYPES,
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in ropes.items()},
    }


_MULTIPLIERS = {
    "attention_multiplier": 0.25,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.3,
    "logits_scaling": 2.5,
}

# name -> (model type, what its config has beside the common sizes)
ZOO: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama_untied": ("llama", {"tie_word_embeddings": False, "rms_norm_eps": 1e-3}),
    "llama_rope3": ("llama", {"rope_parameters": _LLAMA3_ROPE}),
    "llama_head_dim": ("llama", {"head_dim": 16}),
    "llama_attention_bias": ("llama", {"attention_bias": True}),
    "llama_mlp_bias": ("llama", {"mlp_bias": True}),
    "llama_gelu": ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral_window": ("mistral", {"sliding_window": 8}),
    "qwen2": ("qwen2", {"use_sliding_window": False}),
    "qwen2_untied": ("qwen2", {"use_sliding_window": False, "tie_word_embeddings": False}),
    "qwen2_window": ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"use_sliding_window": False}),
    "qwen3_bias": ("qwen3", {"use_sliding_window": False, "attention_bias": True}),
    "qwen3_window": ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}),
    "qwen3_mixed": ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "olmo": ("olmo", {}),
    "olmo_untied": ("olmo", {"tie_word_embeddings": False, "attention_bias": True}),
    "olmo_clip": ("olmo", {"clip_qkv": 0.5}),
    "olmo2": ("olmo2", {}),
    "granite": ("granite", {"attention_bias": True, **_MULTIPLIERS}),
    "granite_plain": ("granite", {"attention_multiplier": 8**-0.5}),
    "granite_swa": (
        "granite_swa",
        {"sliding_window": 8, "layer_rope_theta": [0, 1e4, 1e3], "attention_bias": True, **_MULTIPLIERS},
    ),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 2}),
    "smollm3_window": (
        "smollm3",
        {"no_rope_layer_interval": 3, "use_sliding_window": True, "sliding_window": 8, "attention_bias": True},
    ),
    "cwm": (
        "cwm",
        {
            "sliding_window": 8,
            "layer_types": ["full_attention", *["sliding_attention"] * (LAYERS - 1)],
            "rope_parameters": _LLAMA3_ROPE,
        },
    ),
    "olmo3": ("olmo3", _olmo3(128, 5e3, 5e3)),
    "olmo3_window": ("olmo3", _olmo3(8, 5e3, 5e3)),
    "olmo3_two_ropes": ("olmo3", _olmo3(128, 5e3, 1e4)),
    "ministral3": ("ministral3", {"sliding_window": 8, "rope_parameters": _MINISTRAL_ROPE}),
    "ministral3_long": ("ministral3", {"rope_parameters": {**_MINISTRAL_ROPE, "original_max_position_embeddings": 8}}),
    "gpt2": ("gpt2", {"n_inner": F, "n_embd": D, "n_layer": LAYERS, "n_head": 4, "n_positions": 128}),
    "gemma": ("gemma", {}),
    "gemma_untied": ("gemma", {"tie_word_embeddings": False, "head_dim": 16, "rms_norm_eps": 1e-3}),
    "gemma_bias": ("gemma", {"attention_bias": True}),
    "gemma2": ("gemma2", {"sliding_window": 8}),
    "phi": ("phi", {"tie_word_embeddings": False}),
    "phi3": ("phi3", {"tie_word_embeddings": False}),
    "phi3_tied": ("phi3", {"sliding_window": 8}),
    "phi3_wide_window": ("phi3", {"sliding_window": 100}),
    # Texts in tests have 24 tokens: more than this many have other factors, which the first then uses, not the second.
    "phi3_long": ("phi3", {"original_max_position_embeddings": 8, "rope_parameters": _LONGROPE}),
    "phi3_short": ("phi3", {"original_max_position_embeddings": 64, "rope_parameters": _LONGROPE}),
    "phi3_partial": ("phi3", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.75}}),
    "helium": ("helium", {}),
    "helium_bias": ("helium", {"attention_bias": True, "tie_word_embeddings": False, "rms_norm_eps": 1e-3}),
    "seed_oss": ("seed_oss", {"head_dim": 16}),
    "seed_oss_out_bias": ("seed_oss", {"attention_out_bias": True, "tie_word_embeddings": False}),
    "seed_oss_plain": ("seed_oss", {"attention_bias": False}),
    "seed_oss_odd_bias": ("seed_oss", {"attention_bias": False, "attention_out_bias": True}),
    "internlm3": ("internlm3", {"head_dim": 16}),
    "internlm3_bias": ("internlm3", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    "glm": ("glm", {}),
    "glm_no_bias": ("glm", {"attention_bias": False, "tie_word_embeddings": False, "rms_norm_eps": 1e-3}),
    "glm_whole": ("glm", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0}}),
    "gpt_neox": ("gpt_neox", {"tie_word_embeddings": False}),
    "starcoder2": ("starcoder2", {}),
}
_NOT_FOR_GPT2 = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
)


def build(name: str, *, seed: int = 0, **config: Any) -> Any:
    """A random model of the zoo, in eval mode, its norms and biases spread too."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, extra = ZOO[name]
    values = {**_COMMON, **extra, **config}
    if model_type == "gpt2":
        values = {key: value for key, value in values.items() if key not in _NOT_FOR_GPT2}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **values)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(_SPREAD * torch.randn_like(parameter))
    return model


@functools.cache
def folder(name: str, seed: int = 0, dtype: str = "float32") -> Path:
    """A saved model of the zoo with the tiny tokenizer; built once per process."""
    path = Path(tempfile.mkdtemp(prefix=f"zoo-{name}-"))
    return save(build(name, seed=seed).to(getattr(torch, dtype)), path)
