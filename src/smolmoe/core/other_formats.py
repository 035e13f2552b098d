"""Folders that hold something else than a model's safetensors: adapters, GGUF, other frameworks' weights."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from smolmoe.core.json_text import BAD_FILE, read_json
from smolmoe.errors import CheckpointError, SourceError

ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_FORMATS = {
    "*.gguf": "llama.cpp's GGUF",
    "tf_model*.h5": "TensorFlow",
    "flax_model*.msgpack": "Flax",
    "weights*.npz": "MLX",
    "*.onnx": "ONNX",
}


def check_format(folder: Path, field: str) -> None:
    """Refuse a PEFT adapter, with or without a config.json of the model that it is for, and folders without config.

    Raises:
        SourceError: an adapter; names its model. CheckpointError: weights of another format, and no config.json.
    """
    if not (folder / "config.json").is_file() and not any(folder.glob("*.safetensors")):
        refuse_other_format(folder)
    has_model = any(folder.glob("model*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
    if has_model or not any((folder / name).is_file() for name in (ADAPTER_CONFIG, *_ADAPTER_WEIGHTS)):
        return
    try:
        settings = read_json(folder / ADAPTER_CONFIG)
        base, kind = settings.get("base_model_name_or_path"), settings.get("peft_type")
    except (*BAD_FILE, AttributeError):
        base = kind = None
    raise SourceError(
        f"a PEFT adapter{f' ({kind})' if kind else ''}, not a model: its weights are changes to another model's.",
        field=field,
        value=str(folder),
        fix=f"Merge it into {base or 'the model that it was trained on'} first: load both with "
        "`peft.AutoPeftModelForCausalLM.from_pretrained`, then `merge_and_unload()` and `save_pretrained`.",
    )


def refuse_other_format(folder: Path) -> None:
    """Say which weights there are, where there are no safetensors.

    Raises:
        CheckpointError: there are weights of another format.
    """
    for pattern, maker in _FORMATS.items():
        found = sorted(path.name for path in folder.glob(pattern))
        if found:
            _refuse(found[0], maker)


def _refuse(name: str, maker: str) -> NoReturn:
    raise CheckpointError(
        f"the folder's weights are in the format of {maker}, which is not read.",
        field="weights",
        value=name,
        fix="Use the model's checkpoint in safetensors.",
    )
