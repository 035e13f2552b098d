"""Block-wise fp8 weights (DeepSeek-V3's format) as 16- or 32-bit ones: each block is multiplied by its scale."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolmoe.core.checkpoint import INDEX_FILE, Checkpoint
from smolmoe.core.files import write_json
from smolmoe.core.model_config import read_config
from smolmoe.errors import CheckpointError, SourceError

if TYPE_CHECKING:
    import torch

FP8 = "F8_E4M3"
_SCALE = "scale_inv"
_ACTIVATIONS = ("activation_scale", "input_scale")  # of kernels that compute in fp8


def write_dequantised(checkpoint: Checkpoint, work: Path, dtype: str | None) -> dict[str, int]:
    """Write config.json and weights without the quantisation; one file of the source is in memory at a time.

    Args:
        work: the folder that is being made.
        dtype: of the result; None: the config's, else bfloat16.

    Returns:
        Number of tensors that were dequantised, by their type.

    Raises:
        SourceError: not quantised, or in another way. CheckpointError: a weight without its scale.
    """
    import torch
    from safetensors.torch import save_file

    config = read_config(checkpoint.folder)
    block = _block_size(config)
    stated = str(dtype or config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    config = {key: value for key, value in config.items() if key not in ("quantization_config", "torch_dtype")}
    write_json(work / "config.json", config | {"dtype": stated})
    counted: Counter[str] = Counter()
    places: dict[str, str] = {}
    total = 0
    for file in checkpoint.files():
        tensors: dict[str, torch.Tensor] = {}
        for name, info in checkpoint.tensors.items():
            if info.file != file or name.endswith((_SCALE, *_ACTIVATIONS)):
                continue
            if info.dtype == FP8:
                counted[FP8] += 1
                tensors[name] = _dequantised(checkpoint, name, block).to(getattr(torch, stated))
            else:
                tensors[name] = checkpoint.read(name)
        if tensors:
            save_file(tensors, work / file.name, metadata={"format": "pt"})
            places |= dict.fromkeys(tensors, file.name)
            total += sum(tensor.nbytes for tensor in tensors.values())
    if len(checkpoint.files()) > 1:
        write_json(work / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": places})
    return dict(counted)


def _block_size(config: dict[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of a block, where the config states them."""
    settings = config.get("quantization_config")
    if not isinstance(settings, dict):
        raise SourceError(
            "is not quantised, so there is nothing to dequantise.",
            field="quantization_config",
            value=settings,
            fix="Use it without `dequantise`.",
        )
    method = settings.get("quant_method")
    if method != "fp8":
        raise SourceError(
            "only fp8 weights with a scale for each block can be dequantised.",
            field="quantization_config",
            value=method,
            fix="Use the unquantised checkpoint (fp32, fp16 or bf16).",
        )
    size = settings.get("weight_block_size")
    if size is None:
        return None
    if not (isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)):
        raise SourceError("must be two whole numbers above 0.", field="weight_block_size", value=size)
    return size[0], size[1]


def _dequantised(checkpoint: Checkpoint, name: str, block: tuple[int, int] | None) -> torch.Tensor:
    """One weight in float32."""
    import torch
    from safetensors import safe_open

    scale_name = f"{name}_{_SCALE}"
    if scale_name not in checkpoint.tensors:
        raise CheckpointError(f"is in fp8, but its scale {scale_name} is missing.", field="tensor", value=name)
    scale = checkpoint.read(scale_name).float()
    with safe_open(checkpoint.tensors[name].file, framework="pt") as file:
        weight = file.get_tensor(name).float()
    if scale.numel() == 1:
        return weight * scale.reshape(())
    rows, columns = weight.shape
    size = block or (math.ceil(rows / scale.shape[0]), math.ceil(columns / scale.shape[-1]))
    expected = (math.ceil(rows / size[0]), math.ceil(columns / size[1]))
    if tuple(scale.shape) != expected:
        raise CheckpointError(
            f"has shape {tuple(scale.shape)}; {rows} x {columns} in blocks of {size[0]} x {size[1]} need {expected}.",
            field="tensor",
            value=scale_name,
        )
    spread = scale.repeat_interleave(size[0], 0)[:rows].repeat_interleave(size[1], 1)[:, :columns]
    result = weight * spread
    if not bool(torch.isfinite(result).all()):
        raise CheckpointError("holds NaN or infinity after dequantising.", field="tensor", value=name)
    return result
