"""A GGUF file of llama.cpp as a checkpoint folder: transformers reads it, and what it would drop is refused."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smolmoe.core.words import first_line
from smolmoe.errors import CheckpointError, RequestError, SourceError

_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Setting in the file -> transformers' name for it. transformers' reader skips some of them for some architectures.
_SAME = {
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_DOWNLOAD = "Download the file again."


def read_types(file: Path) -> tuple[str, dict[str, int]]:
    """Architecture of a GGUF file, and the number of its tensors by type (Q4_K, F32, ...).

    Raises:
        RequestError: the `gguf` package is not installed. CheckpointError: not a GGUF file, or it is truncated.
    """
    reader = open_gguf(file)
    return str(value_of(reader, "general.architecture")), dict(Counter(one.tensor_type.name for one in reader.tensors))


def write_gguf_model(file: Path, work: Path, *, dtype: str | None, tokenizer: str | None, max_shard_size: str) -> str:
    """Write the model and its tokenizer.

    Args:
        work: the folder that is being made.
        dtype: of the result; None: the type of the file's matrices if they are floats of one type, else float32,
            in which dequantising rounds nothing.
        tokenizer: folder or hub id of one to write instead of the file's.

    Returns:
        The dtype.

    Raises:
        SourceError: an architecture, or a setting of the file, that transformers does not read.
        CheckpointError: tensors are missing.
    """
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    from smolmoe.moe.loading import find_tokenizer, no_progress_bar

    reader = open_gguf(file)
    dtype = dtype or _dtype(reader)
    config = _config(file, reader)
    with no_progress_bar():
        kept = _tokenizer(file, reader) if tokenizer is None else find_tokenizer(tokenizer)
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                config=config,
                dtype=getattr(torch, dtype),
                quantization_config=GgufConfig(dequantize=True),
                output_loading_info=True,
            )
        except Exception as error:  # many readers, each with its own errors
            raise SourceError(
                f"transformers cannot read this file: {first_line(error)}", field="source", value=str(file)
            ) from error
        _check_loaded(model, info, file)
        _forget_quantisation(model)
        model.save_pretrained(work, max_shard_size=max_shard_size)
        kept.save_pretrained(work)
    return dtype


def skeleton(file: Path) -> Any:
    """The model without its weights.

    Raises:
        SmolmoeError: as `write_gguf_model`.
    """
    from accelerate import init_empty_weights

    from smolmoe.moe.loading import causal_lm_class

    config = _config(file, open_gguf(file))
    with init_empty_weights(include_buffers=False):
        return causal_lm_class(config)._from_config(config)


def _tokenizer(file: Path, reader: Any) -> Any:
    """The file's tokenizer, as transformers makes one of its tokens and merges."""
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:
        raise SourceError(
            f"transformers cannot read the tokenizer of this file ({first_line(error)})",
            field="source",
            value=str(file),
            fix="Name a folder or hub id that has the model's tokenizer: `tokenizer=...`.",
        ) from error
    return _without_others(found, len(value_of(reader, "tokenizer.ggml.tokens")))


def _without_others(tokenizer: Any, count: int) -> Any:
    """A tokenizer without tokens that the file does not have: transformers adds <|endoftext|> to some."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    if len(tokenizer) <= count:
        return tokenizer
    values = json.loads(tokenizer.backend_tokenizer.to_str())
    values["added_tokens"] = [token for token in values["added_tokens"] if token["id"] < count]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(values)),
        chat_template=tokenizer.chat_template,
        model_max_length=tokenizer.model_max_length,
        **tokenizer.special_tokens_map,
    )


def open_gguf(file: Path, *, model: bool = True) -> Any:
    """A GGUF file as the `gguf` package reads it.

    Args:
        model: it must hold a model in one part.

    Raises:
        RequestError: the `gguf` package is not installed. CheckpointError: not a GGUF file, or it is truncated.
        SourceError: one part of several.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise RequestError(
            "the library is not installed.", field="library", value="gguf", fix="pip install 'smolmoe[gguf]'"
        ) from error
    try:
        reader = GGUFReader(file)
    except Exception as error:  # bytes that are out of place raise whatever numpy makes of them
        raise CheckpointError(
            f"not a GGUF file, or a truncated one ({first_line(error)})",
            field="source",
            value=str(file),
            fix=_DOWNLOAD,
        ) from error
    size = file.stat().st_size
    if any(tensor.data_offset + tensor.n_bytes > size for tensor in reader.tensors):
        raise CheckpointError("the file is truncated.", field="source", value=str(file), fix=_DOWNLOAD)
    if not model:
        return reader
    if "general.architecture" not in reader.fields or not reader.tensors:
        raise CheckpointError(
            "holds no model: no architecture or no tensors.", field="source", value=str(file), fix="Use a model's file."
        )
    if int(value_of(reader, "split.count") or 1) > 1:
        raise SourceError(
            "is one part of a model that was split into several files.",
            field="source",
            value=str(file),
            fix="Merge them with llama.cpp's llama-gguf-split.",
        )
    return reader


def value_of(reader: Any, key: str) -> Any:
    """The value of a setting of a file; None if it is not there."""
    field = reader.fields.get(key)
    return None if field is None else field.contents()


def _dtype(reader: Any) -> str:
    types = {tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1}
    return _FLOATS.get(types.pop(), "float32") if len(types) == 1 else "float32"


def _config(file: Path, reader: Any) -> Any:
    """The config as transformers reads it from the file, where it reads all that matters.

    Raises:
        SourceError: an unknown architecture, or a setting that would be dropped.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    architecture = str(value_of(reader, "general.architecture"))
    try:
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:
        raise SourceError(
            f"transformers reads no GGUF file of this architecture ({first_line(error)})",
            field="architecture",
            value=architecture,
            fix="Use the model's checkpoint in safetensors.",
        ) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise SourceError("not a causal language model.", field="architecture", value=architecture)
    for key, name in _SAME.items():
        stated, read = value_of(reader, f"{architecture}.{key}"), getattr(config, name, None)
        if stated is not None and stated != read and not (name == "head_dim" and read is None):
            _refuse(f"{architecture}.{key}", f"{stated}, but transformers reads {read}")
    scaling = value_of(reader, f"{architecture}.rope.scaling.type")
    if scaling not in (None, "none"):
        _refuse(f"{architecture}.rope.scaling.type", str(scaling))
    frequencies = [tensor for tensor in reader.tensors if tensor.name.startswith(("rope_freqs", "rope_factors"))]
    if frequencies:
        config.rope_parameters = _llama3(config, [float(value) for value in frequencies[0].data.ravel()])
    return config


def _llama3(config: Any, factors: list[float]) -> dict[str, Any]:
    """Llama 3's rotary scaling, of which a GGUF file has only the resulting divisors of the frequencies.

    Raises:
        SourceError: they are no result of Llama 3's own constants.
    """
    theta = config.rope_parameters["rope_theta"]
    found = {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": max(factors),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    count = len(factors)
    expected = [_divisor(theta ** (-i / count), found) for i in range(count)]
    if not all(math.isclose(one, other, rel_tol=1e-4) for one, other in zip(factors, expected, strict=True)):
        _refuse("rope_freqs", "divisors of the frequencies that are not Llama 3's")
    return found


def _divisor(frequency: float, rope: Mapping[str, Any]) -> float:
    """Smooth between no scaling of short waves and `factor` of long ones."""
    waves = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    smooth = min(max((waves - low) / (high - low), 0.0), 1.0)
    return float(1 / ((1 - smooth) / factor + smooth))


def _refuse(setting: str, said: str) -> None:
    raise SourceError(
        f"the file says {said}: transformers' GGUF reader would drop it, and the model would compute something else.",
        field="setting",
        value=setting,
        fix="Use the model's checkpoint in safetensors.",
    )


def _check_loaded(model: Any, info: Mapping[str, Any], file: Path) -> None:
    missing = {*info["missing_keys"]} - {*model.all_tied_weights_keys}
    wrong = sorted(missing) or sorted(str(one) for one in info["mismatched_keys"])
    if wrong:
        raise CheckpointError(
            f"tensors that the model needs are missing or misshapen: {', '.join(wrong[:3])}.",
            field="source",
            value=str(file),
            fix=_DOWNLOAD,
        )


def _forget_quantisation(model: Any) -> None:
    """The weights are plain now; saving must not say otherwise."""
    model.hf_quantizer = None
    model.config.__dict__.pop("quantization_config", None)
    model.is_quantized = False
