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

_LFM2 = {"layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False}
_COHERE2 = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "logit_scale": 0.25}
_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 12,
    "head_dim": 4,
}
_QWEN3_5 = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
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
    "olmo2": ("olmo2", {}),
    "gpt2": ("gpt2", {"n_inner": F, "n_embd": D, "n_layer": LAYERS, "n_head": 4, "n_positions": 128}),
    "gemma2": ("gemma2", {"sliding_window": 8}),
    "phi": ("phi", {"tie_word_embeddings": False}),
    "phi3": ("phi3", {"tie_word_embeddings": False}),
    "gpt_neox": ("gpt_neox", {"tie_word_embeddings": False}),
    "starcoder2": ("starcoder2", {}),
    "lfm2": ("lfm2", _LFM2),
    "lfm2_untied": (
        "lfm2",
        {
            **_LFM2,
            "conv_bias": True,
            "conv_L_cache": 4,
            "norm_eps": 1e-3,
            "tie_word_embeddings": False,
            "block_auto_adjust_ff_dim": True,
            "intermediate_size": 60,
            "block_ffn_dim_multiplier": 1.1,
            "block_multiple_of": 16,
        },
    ),
    "ernie4_5": ("ernie4_5", {}),
    "ernie4_5_untied": ("ernie4_5", {"tie_word_embeddings": False, "head_dim": 16, "rms_norm_eps": 1e-3}),
    "ernie4_5_bias": ("ernie4_5", {"use_bias": True}),
    "hunyuan": ("hunyuan_v1_dense", {}),
    "hunyuan_bias": (
        "hunyuan_v1_dense",
        {
            "tie_word_embeddings": False,
            "attention_bias": True,
            "head_dim": 16,
            "rms_norm_eps": 1e-3,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 50.0, "factor": 1.0},
        },
    ),
    "cohere": ("cohere", {"logit_scale": 0.25}),
    "cohere_bias": ("cohere", {"attention_bias": True, "tie_word_embeddings": False, "layer_norm_eps": 1e-3}),
    "cohere_qk_norm": ("cohere", {"use_qk_norm": True}),
    "cohere2": ("cohere2", {**_COHERE2, "sliding_window": 8}),
    "cohere2_bias": (
        "cohere2",
        {
            **_COHERE2,
            "sliding_window": 100,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "layer_norm_eps": 1e-3,
        },
    ),
    "qwen3_5": ("qwen3_5_text", _QWEN3_5),
    "qwen3_5_bias": (
        "qwen3_5_text",
        {
            **_QWEN3_5,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "rms_norm_eps": 1e-3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        },
    ),
    "youtu": ("youtu", _LATENT),
    "youtu_bias": (
        "youtu",
        {**_LATENT, "attention_bias": True, "tie_word_embeddings": False, "q_lora_rank": None, "rms_norm_eps": 1e-3},
    ),
    "youtu_halves": ("youtu", {**_LATENT, "attention_bias": True, "rope_interleave": False}),
    "minicpm3": ("minicpm3", {**_LATENT, "dim_model_base": 8}),
    "minicpm3_bias": (
        "minicpm3",
        {
            **_LATENT,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "scale_emb": 3,
            "scale_depth": 0.7,
            "dim_model_base": 12,
            "rms_norm_eps": 1e-3,
        },
    ),
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
