"""How many layers' experts must stay in the CPU's memory, from the sizes of the tensors in a GGUF file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smolmoe.results.gguf import Placement
from smolmoe.surgery.imports.gguf import open_gguf, value_of

# llama.cpp's own pattern for -ncmoe, with the layer.
_EXPERTS = re.compile(r"blk\.(\d+)\.ffn_(up|down|gate|gate_up)_(ch|)exps")
_INPUT, _OUTPUT = "token_embd.weight", "output.weight"
DRIVER = 512 * 2**20  # bytes that a CUDA context and its libraries take
BATCH = 512  # llama.cpp's default for tokens per pass, whose logits are kept in float32
_BYTES = 2  # of a key's or value's element: float16, llama.cpp's default


def place_experts(file: Path, vram: int, context: int | None) -> Placement:
    """The smallest N of `-ncmoe N` with which a GGUF file fits.

    Args:
        vram: bytes of the GPU.
        context: tokens; None for the model's own.
    """
    reader = open_gguf(file)
    prefix = str(value_of(reader, "general.architecture"))
    settings = {
        key.removeprefix(f"{prefix}."): value_of(reader, key) for key in reader.fields if key.startswith(f"{prefix}.")
    }
    context = context or int(settings["context_length"])
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in reader.tensors}
    vocabulary = next(max(map(int, tensor.shape)) for tensor in reader.tensors if tensor.name == _INPUT)
    overhead = DRIVER + 4 * BATCH * vocabulary
    return placed(sizes, int(settings["block_count"]), kv_bytes(settings, context), overhead, vram, context)


def kv_bytes(settings: Mapping[str, Any], context: int) -> int:
    """Bytes of the KV cache.

    Args:
        settings: of the file, without the architecture's name: head counts are one number or one for each layer.
    """
    layers, heads = int(settings["block_count"]), settings["attention.head_count"]
    kept = settings.get("attention.head_count_kv", heads)
    kept = list(kept) if isinstance(kept, list | tuple) else [kept] * layers
    width = settings["embedding_length"] // (max(heads) if isinstance(heads, list | tuple) else heads)
    key, value = (settings.get(f"attention.{what}_length", width) for what in ("key", "value"))
    return int(sum(kept) * (key + value) * context * _BYTES)


def placed(sizes: Mapping[str, int], layers: int, kv_cache: int, overhead: int, vram: int, context: int) -> Placement:
    """The placement of tensors, given their sizes in bytes by name.

    The input embeddings stay in the CPU's memory; if the output head is tied to them, the GPU has a copy.
    """
    by_layer = [0] * layers
    for name, nbytes in sizes.items():
        if found := _EXPERTS.match(name):
            by_layer[int(found[1])] += nbytes
    experts = sum(by_layer)
    weights = sum(sizes.values()) - experts - (sizes[_INPUT] if _OUTPUT in sizes else 0)
    room = vram - weights - kv_cache - overhead
    kept_on_gpu, n_cpu_moe = experts, 0
    while kept_on_gpu > max(room, 0):
        kept_on_gpu -= by_layer[n_cpu_moe]
        n_cpu_moe += 1
    return Placement(
        vram=vram,
        context=context,
        weights=weights,
        experts=experts,
        gpu_experts=kept_on_gpu,
        kv_cache=kv_cache,
        overhead=overhead,
        n_cpu_moe=n_cpu_moe,
        layers=layers,
        fits=room >= 0,
    )
