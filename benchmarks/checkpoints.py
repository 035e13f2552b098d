"""Llama checkpoints of real shapes, made on the spot: with random weights, or sparse files that take no disk."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

EOS = "<|endoftext|>"


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama: hidden D, FFN width F, layers L, attention and key/value heads, vocabulary V."""

    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool

    def config(self) -> dict[str, object]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.hidden // self.heads,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "initializer_range": 0.02,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "dtype": "bfloat16",
        }

    def layer(self, index: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of one layer's tensors."""
        kv = self.hidden // self.heads * self.kv_heads
        sizes: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.ffn, self.hidden),
            "mlp.up_proj": (self.ffn, self.hidden),
            "mlp.down_proj": (self.hidden, self.ffn),
            "input_layernorm": (self.hidden,),
            "post_attention_layernorm": (self.hidden,),
        }
        return {f"model.layers.{index}.{name}.weight": size for name, size in sizes.items()}

    def outside(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors that belong to no layer."""
        embedding = (self.vocabulary, self.hidden)
        head = {} if self.tied else {"lm_head.weight": embedding}
        return {"model.embed_tokens.weight": embedding, "model.norm.weight": (self.hidden,)} | head

    def shards(self, layers_each: int) -> Iterator[dict[str, tuple[int, ...]]]:
        """The checkpoint's tensors, `layers_each` layers a shard; what belongs to no layer comes first."""
        yield self.outside()
        for start in range(0, self.layers, layers_each):
            indices = range(start, min(start + layers_each, self.layers))
            yield {name: size for index in indices for name, size in self.layer(index).items()}


SMOLLM_135M = Shape(hidden=576, ffn=1536, layers=30, heads=9, kv_heads=3, vocabulary=49152, tied=True)
LLAMA_7B = Shape(hidden=4096, ffn=11008, layers=32, heads=32, kv_heads=32, vocabulary=32000, tied=False)


def write_random(folder: Path, shape: Shape, seed: int) -> int:
    """Write a bf16 checkpoint with random weights, norms 1, in one file or several; returns its bytes."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)

    def tensor(size: tuple[int, ...]) -> torch.Tensor:
        if len(size) == 1:
            return torch.ones(size, dtype=torch.bfloat16)
        return torch.empty(size, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)

    # A small model is one file, as published; a large one is sharded so that making it needs little memory.
    one_file = shape.hidden < 2048
    shards = list(shape.shards(layers_each=shape.layers if one_file else 2))
    if one_file:
        shards = [{name: size for shard in shards for name, size in shard.items()}]
    for name, sizes in zip(_prepare(folder, shape, shards), shards, strict=True):
        save_file({key: tensor(size) for key, size in sizes.items()}, folder / name, metadata={"format": "pt"})
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def write_sparse(folder: Path, shape: Shape) -> int:
    """Write a bf16 checkpoint of zeros as sparse files: real headers and lengths, no disk; returns the bytes."""
    shards = list(shape.shards(layers_each=12))
    for name, sizes in zip(_prepare(folder, shape, shards), shards, strict=True):
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for key, size in sizes.items():
            end = offset + 2 * prod(size)
            header[key] = {"dtype": "BF16", "shape": list(size), "data_offsets": [offset, end]}
            offset = end
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(encoded)) + encoded)
            file.truncate(8 + len(encoded) + offset)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _prepare(folder: Path, shape: Shape, shards: list[dict[str, tuple[int, ...]]]) -> list[str]:
    """Write everything but the weights; returns the names of the weight files."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=2))
    write_tokenizer(folder, shape.vocabulary)
    if len(shards) == 1:
        return ["model.safetensors"]
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    placed = {key: name for name, sizes in zip(names, shards, strict=True) for key in sizes}
    total = sum(2 * prod(size) for sizes in shards for size in sizes.values())
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return names


def write_tokenizer(folder: Path, vocabulary: int) -> None:
    """A byte-level BPE of exactly `vocabulary` tokens: one special token, the bytes, then merges of two bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(left, right) for left in alphabet for right in alphabet][: vocabulary - len(alphabet) - 1]
    tokens = [EOS, *alphabet, *(left + right for left, right in pairs)]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([EOS])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": EOS, "eos_token": EOS}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
