"""Tiny dense models, and the generic MoE made of them by hand: what the tests of moe/generic.py start from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

from smolmoe.moe.generic import SmolMoeConfig, SmolMoeForCausalLM

PAD, VOCAB, D, WIDTH, LAYERS = 0, 96, 32, 48, 2
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": D,
    "intermediate_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2_SIZES = {"vocab_size": VOCAB, "n_embd": D, "n_layer": LAYERS, "n_head": 4, "n_positions": 64, "n_inner": WIDTH}


@dataclass(frozen=True)
class Family:
    """A dense family by hand: its config, and how to read the [out, in] weights of its FFN, gate rows first."""

    config: str
    options: dict[str, Any]
    up: tuple[str, ...] = ("gate_proj", "up_proj")
    down: str = "down_proj"
    act: str = "silu"
    layers: str = "model.layers"
    gated: bool = True
    bias: bool = False
    transposed: bool = False

    def text_config(self) -> transformers.PreTrainedConfig:
        return getattr(transformers, self.config)(**self.options)


SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
PLAIN = {"gated": False, "bias": True, "act": "gelu_new"}
FAMILIES = {
    "llama": Family("LlamaConfig", SIZES),
    "llama_tied": Family("LlamaConfig", {**SIZES, "tie_word_embeddings": True}),
    "llama_bias": Family("LlamaConfig", {**SIZES, "mlp_bias": True}, bias=True),
    "mistral": Family("MistralConfig", {**SIZES, "sliding_window": 4}),
    "qwen2": Family("Qwen2Config", {**SIZES, **SLIDING, "use_sliding_window": True}),
    "qwen3": Family("Qwen3Config", {**SIZES, "head_dim": 8}),
    "olmo2": Family("Olmo2Config", SIZES),
    "smollm3": Family("SmolLM3Config", SIZES),
    "gemma": Family("GemmaConfig", {**SIZES, "head_dim": 8}, act="gelu_pytorch_tanh"),
    "gemma2": Family("Gemma2Config", {**SIZES, **SLIDING, "head_dim": 8}, act="gelu_pytorch_tanh"),
    "gemma3": Family("Gemma3TextConfig", {**SIZES, **SLIDING, "head_dim": 8}, act="gelu_pytorch_tanh"),
    "phi3": Family("Phi3Config", SIZES, up=("gate_up_proj",)),
    "stablelm": Family("StableLmConfig", SIZES),
    "gpt2": Family("GPT2Config", GPT2_SIZES, ("c_fc",), "c_proj", layers="transformer.h", transposed=True, **PLAIN),
    "phi": Family("PhiConfig", SIZES, ("fc1",), "fc2", **PLAIN),
    "starcoder2": Family("Starcoder2Config", SIZES, ("c_fc",), "c_proj", "gelu_pytorch_tanh", gated=False, bias=True),
    "gpt_neox": Family(
        "GPTNeoXConfig", SIZES, ("dense_h_to_4h",), "dense_4h_to_h", "gelu", "gpt_neox.layers", gated=False, bias=True
    ),
}


def build_dense(family: Family, seed: int = 0) -> Any:
    """A tiny dense model whose logits depend strongly on its FFNs."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(family.text_config()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.dim() > 1 else 0.05))
    return model


def moe_config(family: Family, **options: Any) -> SmolMoeConfig:
    return SmolMoeConfig(
        **{
            "text_config": family.text_config().to_dict(),
            "layers_module": family.layers,
            "mlp_module": "mlp",
            "gated": family.gated,
            "mlp_bias": family.bias,
            "hidden_act": family.act,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": WIDTH,
            **options,
        }
    )


def ffn_tensors(ffn: nn.Module, family: Family) -> dict[str, torch.Tensor]:
    """The dense FFN as `{up|down}.{weight|bias}` with weights [out, in], gate rows before up rows."""
    tensors = {}
    for kind, names in (("up", family.up), ("down", (family.down,))):
        leaves = [ffn.get_submodule(name) for name in names]
        tensors[f"{kind}.weight"] = torch.cat([leaf.weight.T if family.transposed else leaf.weight for leaf in leaves])
        if family.bias:
            tensors[f"{kind}.bias"] = torch.cat([leaf.bias for leaf in leaves])
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def upcycle(dense: Any, family: Family, **options: Any) -> SmolMoeForCausalLM:
    """By hand: the dense tensors under `lm.`, each expert a copy of the FFN, a random router.

    A shared expert (of the dense width) takes half of the FFN's output, the routed experts the other half.
    """
    config = moe_config(family, **options)
    tensors = {f"lm.{k}": v for k, v in dense.state_dict().items() if ".mlp." not in k}
    up_name = "gate_up_proj" if family.gated else "up_proj"
    share = 0.5 if config.shared_expert_intermediate_size else 1.0
    for layer in range(LAYERS):
        prefix = f"lm.{family.layers}.{layer}.mlp"
        if layer not in config.moe_layers:
            own = {k: v for k, v in dense.state_dict().items() if k.startswith(prefix.removeprefix("lm.") + ".")}
            tensors |= {f"lm.{k}": v for k, v in own.items()}
            continue
        ffn = ffn_tensors(dense.get_submodule(f"{family.layers}.{layer}.mlp"), family)
        for name, tensor in ffn.items():
            kind, what = name.split(".")
            target, scaled = (up_name, tensor) if kind == "up" else ("down_proj", tensor * share)
            suffix = "" if what == "weight" else "_bias"
            tensors[f"{prefix}.experts.{target}{suffix}"] = scaled.expand(config.num_experts, *scaled.shape).clone()
            if config.shared_expert_intermediate_size:
                tensors[f"{prefix}.shared_expert.{target}.{what}"] = scaled
        tensors[f"{prefix}.gate.weight"] = torch.randn(config.num_experts, D)
        tensors[f"{prefix}.gate.e_score_correction_bias"] = 0.1 * torch.randn(config.num_experts)
    model = SmolMoeForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert not missing
    return model


def padded_batch(seed: int = 1) -> dict[str, torch.Tensor]:
    """Three sequences of 9, the first two left-padded."""
    ids = torch.randint(3, VOCAB, (3, 9), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    for row, pad in ((0, 4), (1, 1)):
        ids[row, :pad], mask[row, :pad] = PAD, 0
    return {"input_ids": ids, "attention_mask": mask}
