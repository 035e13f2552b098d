"""Tiny MoEs of transformers whose routers are of classes not known here."""

from __future__ import annotations

from typing import Any

import torch

_SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"), 0),
}
_LATENT: dict[str, Any] = {
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}
OTHER_MOES: dict[str, dict[str, Any]] = {
    "afmoe": {},
    "aria_text": {},
    "cohere2_moe": {},
    "dbrx": {
        "d_model": 64,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 128,
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
    },
    "deepseek_v2": _LATENT,
    "ernie4_5_moe": {},
    "gpt_oss": {},
    "hunyuan_v1_moe": {},
    "inkling_text": {},
    "jamba": {"attn_layer_period": 1, "attn_layer_offset": 0, "expert_layer_period": 1, "expert_layer_offset": 0},
    "lfm2_moe": {"layer_types": ["full_attention"] * 2},
    "llama4_text": {"intermediate_size_mlp": 64, "interleave_moe_layer_step": 1},
    "longcat_flash": {
        **_LATENT,
        "num_layers": 2,
        "ffn_hidden_size": 64,
        "expert_ffn_hidden_size": 32,
        "zero_expert_num": 2,
    },
    "minimax_m2": {},
    "phimoe": {},
    "zaya": {"num_experts_per_tok": 1},
}
UNREADABLE: dict[str, dict[str, Any]] = {"jetmoe": {}, "doge": {"is_moe": True}}


def other_moe(kind: str, *, seed: int = 0) -> Any:
    """A random model of that type, spread far enough that experts matter."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    own = {**OTHER_MOES, **UNREADABLE}[kind]
    plain = CONFIG_MAPPING[kind]()
    values = {key: value for key, value in {**_SIZES, **own}.items() if key in own or hasattr(plain, key)}
    if kind not in ("jamba", "dbrx") and getattr(plain, "layer_types", None):
        values.setdefault("layer_types", None)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**values), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    return model
