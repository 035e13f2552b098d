"""Tiny checkpoints made on the spot: random dense models, stock MoEs with random weights, and exact MoE copies."""

from __future__ import annotations

import functools
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

VOCABULARY = 300
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,  # large enough for every layer to matter to the logits
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
FFN = 48
ROUTED = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}
FIRST_DENSE = ("deepseek_v3", "glm4_moe", "lfm2_moe")  # of those below the first layer is dense
# model type -> what its config needs beside SIZES
MOE_CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": FFN},
    "qwen2_moe": {**ROUTED, "shared_expert_intermediate_size": FFN, "intermediate_size": FFN},
    "qwen3_moe": {**ROUTED, "intermediate_size": FFN},
    "granitemoeshared": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "intermediate_size": FFN,
        "shared_intermediate_size": 16,
    },
    "glm4_moe": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "intermediate_size": FFN,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
    },
    "granitemoehybrid": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "intermediate_size": FFN,
        "shared_intermediate_size": 16,
        "layer_types": ["linear_attention", "full_attention"],
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
    },
    "beam": {
        **ROUTED,
        "intermediate_size": FFN,
        "mlp_layer_types": ["sparse"],
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.0,
        "final_logit_softcapping": None,
    },
    "flex_olmo": {"num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": FFN},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": FFN},
    "cohere2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "intermediate_size": 24,
        "num_shared_experts": 2,
        "shared_expert_combination_strategy": "sum",
        "expert_selection_fn": "sigmoid",
        "layer_types": ["sliding_attention", "full_attention"],
        "logit_scale": 0.5,
    },
    "deepseek_v3": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "intermediate_size": FFN,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "num_key_value_heads": 4,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
    },
    "ernie4_5_moe": {
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 24,
        "intermediate_size": FFN,
        "moe_num_shared_experts": 2,
        "moe_layer_start_index": 0,
    },
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2, "intermediate_size": 24},
    "lfm2_moe": {
        **ROUTED,
        "intermediate_size": FFN,
        "num_dense_layers": 1,
        "layer_types": ["conv", "full_attention"],
    },
    "qwen3_5_moe_text": {
        **ROUTED,
        "shared_expert_intermediate_size": 16,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    },
}


@functools.cache
def _tokenizer_json() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<end>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = ["def add(a, b):\n    return a + b\n", "The sum of three and four is seven, as everyone can see."] * 4
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer.to_str()


def tiny_tokenizer() -> Any:
    """A byte-level BPE of VOCABULARY tokens."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_json()), eos_token="<end>", pad_token="<pad>"
    )


CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


def chat_tokenizer(template: str = CHAT_TEMPLATE) -> Any:
    """The tiny tokenizer with a chat template, whose turns end by <end> (token 0), which is not its end of text."""
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "<pad>"
    tokenizer.chat_template = template
    return tokenizer


def chat_model(model: Any, folder: Path, template: str = CHAT_TEMPLATE) -> Path:
    """Save a model with the tokenizer for chats."""
    model.generation_config.eos_token_id = None
    save(model, folder, tokenizer=False)
    chat_tokenizer(template).save_pretrained(folder)
    return folder


def save(model: Any, folder: Path, *, tokenizer: bool = True, **options: Any) -> Path:
    """Save a model, by default with the tiny tokenizer."""
    model.save_pretrained(folder, **options)
    if tokenizer:
        tiny_tokenizer().save_pretrained(folder)
    return folder


def dense_llama(*, seed: int = 0, **config: Any) -> Any:
    """A random LlamaForCausalLM."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, "intermediate_size": FFN, **config})).eval()


def dense_gpt2(*, seed: int = 0) -> Any:
    """A random GPT2LMHeadModel."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": FFN}
    tokens = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **tokens, initializer_range=0.2)).eval()


def random_moe(model_type: str, *, seed: int = 0, **config: Any) -> Any:
    """A stock MoE with random weights; every expert differs."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    values = {**SIZES, **MOE_CONFIGS[model_type], **config}
    for key in [key for key in values if key.endswith("layer_types")]:
        values[key] = list(islice(cycle(values[key]), values["num_hidden_layers"]))
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **values)).eval()


@torch.no_grad()
def moe_of(
    dense: Any,
    model_type: str = "mixtral",
    *,
    experts: int = 4,
    top_k: int = 2,
    granularity: int = 1,
    router_std: float = 0.5,
    seed: int = 0,
) -> Any:
    """A stock MoE that computes what this Llama does: copies of its FFN, or with `granularity` shards of it.

    With a shared expert (all but Mixtral) the shared and the routed experts give one half each.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    source = dense.config
    width = source.intermediate_size // granularity
    values = {name: getattr(source, name) for name in SIZES}
    values |= {"rms_norm_eps": source.rms_norm_eps, "rope_parameters": source.rope_parameters, "dtype": source.dtype}
    values |= {"num_experts_per_tok": top_k, "intermediate_size": source.intermediate_size}
    if model_type == "mixtral":
        values |= {"num_local_experts": experts, "intermediate_size": width, "sliding_window": None}
    elif model_type == "granitemoeshared":
        multipliers = {"embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0}
        values |= {"num_local_experts": experts, "intermediate_size": width, **multipliers}
        values |= {"attention_multiplier": source.head_dim**-0.5, "shared_intermediate_size": source.intermediate_size}
    elif model_type == "qwen2_moe":
        values |= {"num_experts": experts, "moe_intermediate_size": width, "norm_topk_prob": True}
        values |= {"shared_expert_intermediate_size": source.intermediate_size, "qkv_bias": True}
    torch.manual_seed(seed)
    moe = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **values)).to(dense.dtype).eval()
    for name, parameter in moe.named_parameters():
        parameter.copy_(dense.get_parameter(name) if name in dict(dense.named_parameters()) else 0)
    shared_half = 1.0 if model_type == "mixtral" else 0.5
    for ours, theirs in zip(moe.model.layers, dense.model.layers, strict=True):
        block = ours.block_sparse_moe if model_type == "granitemoeshared" else ours.mlp
        _fill_experts(block.experts, theirs.mlp, granularity, shared_half * granularity)
        rows = router_std * torch.randn(experts // granularity, source.hidden_size)
        router = block.router if model_type == "granitemoeshared" else block.gate
        router.weight.copy_(rows.repeat_interleave(granularity, dim=0))
        if model_type == "granitemoeshared":
            ours.shared_mlp.input_linear.weight.copy_(_gate_up(theirs.mlp))
            ours.shared_mlp.output_linear.weight.copy_(theirs.mlp.down_proj.weight / 2)
        elif model_type == "qwen2_moe":  # its gate is zero: sigmoid(0) = 1/2
            block.shared_expert.load_state_dict(theirs.mlp.state_dict())
    return moe


def _fill_experts(experts: nn.Module, mlp: nn.Module, granularity: int, scale: float) -> None:
    gates, ups = mlp.gate_proj.weight.chunk(granularity), mlp.up_proj.weight.chunk(granularity)
    downs = mlp.down_proj.weight.chunk(granularity, dim=1)
    for expert in range(experts.gate_up_proj.shape[0]):
        shard = expert % granularity
        experts.gate_up_proj[expert] = torch.cat([gates[shard], ups[shard]])
        experts.down_proj[expert] = downs[shard] * scale


def _gate_up(mlp: nn.Module) -> torch.Tensor:
    return torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])


def edit_tensors(folder: Path, edit: Any) -> None:
    """Rewrite the tensors of a single-file checkpoint: `edit` changes the dict in place."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def hash_routed(*kinds: str) -> Any:
    """A DeepSeek-V4, whose layers are `hash_moe`, which choose by a table of tokens, or `moe`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {**SIZES, "num_key_value_heads": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "n_group": 1}
    latent = {"q_lora_rank": 16, "qk_rope_head_dim": 8, "moe_intermediate_size": 24, "intermediate_size": 48}
    config = AutoConfig.for_model("deepseek_v4", **sizes, **latent, mlp_layer_types=list(kinds))
    return AutoModelForCausalLM.from_config(config)
