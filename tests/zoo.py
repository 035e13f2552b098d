"""Tiny random dense models of every family, untied and tied, with every attention feature that surgery looks at."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from tests.helpers import SIZES, save
from tests.scratch import new_folder

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
    return save(build(name, seed=seed).to(getattr(torch, dtype)), new_folder(f"zoo-{name}"))
