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
    "gemma3": (
        "gemma3_text",
        {
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 50000.0, "factor": 2.0},
            },
            "query_pre_attn_scalar": 24,
            "final_logit_softcapping": 5.0,
            "attention_bias": True,
            "rms_norm_eps": 1e-6,
        },
    ),
    "granitemoehybrid": (
        "granitemoehybrid",
        {
            "num_local_experts": 0,
            "shared_intermediate_size": F,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "position_embedding_type": "rope",
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
            "attention_bias": True,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
        },
    ),
    "granitemoehybrid_attention": (
        "granitemoehybrid",
        {
            "num_local_experts": 0,
            "shared_intermediate_size": F,
            "layer_types": ["full_attention"] * LAYERS,
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
            "tie_word_embeddings": False,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
        },
    ),
    "gemma4": (
        "gemma4_text",
        {
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            "global_head_dim": 16,
            "vocab_size_per_layer_input": SIZES["vocab_size"],
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 1,
        },
    ),
    "gemma3_untied": ("gemma3_text", {"sliding_window": 200, "tie_word_embeddings": False}),
    "phi": ("phi", {"tie_word_embeddings": False}),
    "phi3": ("phi3", {"tie_word_embeddings": False}),
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
