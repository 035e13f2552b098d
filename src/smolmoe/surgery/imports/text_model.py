"""The text model of a multimodal checkpoint, as a separate causal language model: a part of the tensors, renamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smolmoe.core.checkpoint import Checkpoint
from smolmoe.core.files import write_json
from smolmoe.errors import CheckpointError, SourceError
from smolmoe.surgery.tensors.program import Block, OutTensor, Read
from smolmoe.surgery.tensors.writer import write_tensors

# Text models that are no class of their own. Their rotary positions have a section for time, height and width; of text
# all three are the same, which is what the plain class computes.
_PLAIN = {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3"}
_SECTIONS = ("mrope_section", "mrope_interleaved")


def write_text_model(checkpoint: Checkpoint, work: Path, max_shard_bytes: int) -> None:
    """Write config.json and weights of the text model.

    Args:
        work: the folder that is being made.

    Raises:
        SourceError: not a multimodal model with one text model, or transformers has no class for that alone.
        CheckpointError: tensors of the text model are missing.
    """
    from smolmoe.moe.loading import load_config

    config = load_config(checkpoint.folder)
    whole = _skeleton(_composite_class(config), config)
    text = _text_config(config)
    alone = _skeleton(_causal_class(text), text)
    names = _sources(checkpoint, whole, alone)
    text.tie_word_embeddings = "lm_head.weight" not in names and "lm_head.weight" in alone.all_tied_weights_keys
    text.architectures = [type(alone).__name__]
    stored = [checkpoint.dtype(disk) for disk in names.values()]
    values = text.to_dict() | {"dtype": max(sorted(set(stored)), key=stored.count)}
    values.pop("_name_or_path", None)
    write_json(work / "config.json", values)
    tensors = []
    for name, disk in names.items():
        shape = checkpoint.tensors[disk].shape
        block = Block(shape, (Read("base", disk),))
        tensors.append(OutTensor(name, name, (), shape, checkpoint.dtype(disk), "kept", (block,)))
    write_tensors(work, tensors, {"base": checkpoint}, seed=0, max_shard_bytes=max_shard_bytes)


def _composite_class(config: Any) -> Any:
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        MODEL_FOR_MULTIMODAL_LM_MAPPING,
    )

    for mapping in (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING):
        if type(config) in mapping and config.get_text_config() is not config:
            return mapping[type(config)]
    raise SourceError(
        "not a multimodal model that transformers can run, so there is no text model to take out of it.",
        field="model_type",
        value=config.model_type,
        fix="Use it without `text_model`.",
    )


def _text_config(config: Any) -> Any:
    """The text model's config, of a class that transformers can run alone."""
    from transformers import AutoConfig

    text = config.get_text_config()
    if text.model_type not in _PLAIN:
        return text
    values = text.to_dict() | {"model_type": _PLAIN[text.model_type]}
    rope = {key: value for key, value in values["rope_parameters"].items() if key not in _SECTIONS}
    return AutoConfig.for_model(**values | {"rope_parameters": rope})


def _causal_class(text: Any) -> Any:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise SourceError(
            "transformers has no causal language model for this text model alone.",
            field="model_type",
            value=text.model_type,
        )
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(text)]


def _skeleton(kind: Any, config: Any) -> Any:
    from accelerate import init_empty_weights

    try:
        with init_empty_weights():
            return kind._from_config(config)
    except Exception as error:  # model code may raise anything; the cause is this config
        raise SourceError(
            f"no {kind.__name__} can be built from the config ({error}).", field="model_type", value=config.model_type
        ) from error


def _sources(checkpoint: Checkpoint, whole: Any, alone: Any) -> dict[str, str]:
    """Name of each tensor of the text model -> its name on disk."""
    from smolmoe.moe.loading import names_in_class

    decoder = whole.get_decoder()
    prefix = next((name for name, module in whole.named_modules() if module is decoder), "")
    base = alone.base_model_prefix
    head = next((name for name, module in whole.named_modules() if module is whole.get_output_embeddings()), "lm_head")
    on_disk = {name: disk for disk, name in names_in_class(whole, checkpoint.tensors).items()}
    found: dict[str, str] = {}
    for name, value in alone.state_dict().items():
        inside = f"{prefix}.{name.removeprefix(f'{base}.')}" if name.startswith(f"{base}.") else None
        disk = on_disk.get(inside or name.replace("lm_head", head))
        if disk is None:
            if name in alone.all_tied_weights_keys:
                continue
            raise CheckpointError(
                "the text model's tensor is missing from the files.", field="tensor", value=inside or name
            )
        if checkpoint.tensors[disk].shape != tuple(value.shape):
            raise SourceError(
                f"has shape {checkpoint.tensors[disk].shape}, but the text model's config says {tuple(value.shape)}.",
                field="tensor",
                value=disk,
            )
        found[name] = disk
    return found
