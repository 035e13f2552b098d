"""The model and the tokenizer of a run, and checks that they fit each other and the data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from smolmoe.core.checkpoint import fingerprint, open_checkpoint
from smolmoe.core.devices import pick_device
from smolmoe.core.provenance import SCHEMA_VERSION, command, read_provenance, versions
from smolmoe.errors import RequestError, SourceError
from smolmoe.moe import loading, register
from smolmoe.moe.kernels.register import set_experts
from smolmoe.moe.loading import GENERIC_TYPE, load_model, load_tokenizer
from smolmoe.recipe import AlignRecipe, TrainRecipe
from smolmoe.recipe.base import unknown_key
from smolmoe.recipe.train import ModelRecipe

_TOKEN_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")


def model_folder(recipe: ModelRecipe) -> Path | None:
    """The local folder of the checkpoint to train on, downloaded if it is a hub id; None for a new model."""
    if recipe.path is None:
        return None
    return open_checkpoint(recipe.path, revision=recipe.revision, field="model.path").folder


def find_tokenizer(recipe: TrainRecipe, folder: Path | None) -> Any:
    """The recipe's tokenizer, by default the model's.

    Raises:
        SourceError: the tokenizer is missing or cannot be read.
    """
    if recipe.tokenizer is None:
        found = load_tokenizer(folder) if folder is not None else None
        if found is None:
            raise SourceError(
                "the model has no tokenizer." if folder else "a new model needs a tokenizer.",
                field="tokenizer",
                value=None,
                fix="Use a folder, a hub id, or a vocabulary size to train one.",
            )
        return found
    return loading.find_tokenizer(str(recipe.tokenizer))


def build_model(recipe: TrainRecipe, tokenizer: Any, folder: Path | None) -> Any:
    """The model in float32: from a checkpoint, or new with random weights of the recipe's seed.

    Args:
        folder: of the checkpoint (also one to resume from); None makes a new model.

    Raises:
        RequestError: the config, the tokenizer and the data's block length do not fit together.
    """
    model = load_model(folder, own=True) if folder is not None else _new_model(recipe, tokenizer)
    check_fit(model.config.get_text_config(), tokenizer, recipe.data.length)
    set_implementations(model, recipe.model, pick_device(recipe.device))
    # Balance must not count twice: ours is per layer, and the stock loss would be added to the cross-entropy.
    if getattr(model.config, "output_router_logits", False):
        model.config.output_router_logits = False
    return model


def set_implementations(model: Any, recipe: ModelRecipe, device: str) -> None:
    """Set the recipe's implementations of attention and experts.

    Raises:
        RequestError: no implementation of that name, or it is not available.
    """
    set_experts(model, recipe.experts, device=device, field="model.experts")
    if recipe.attention is None:
        return
    try:
        model.set_attn_implementation(recipe.attention)
    except Exception as error:  # of whatever type: a kernel may have to be fetched
        said = " ".join(str(error).split()).rstrip(".")
        raise RequestError(
            f"transformers refuses it: {said}.",
            field="model.attention",
            value=recipe.attention,
            fix="Use sdpa or eager.",
        ) from error


def check_fit(config: Any, tokenizer: Any, length: int) -> None:
    """Raises RequestError if the vocabulary is too small for the tokenizer, or blocks exceed the positions."""
    if len(tokenizer) > config.vocab_size:
        raise RequestError(
            f"the tokenizer has {len(tokenizer):,} tokens, but the model only {config.vocab_size:,}.",
            field="tokenizer",
            value=getattr(tokenizer, "name_or_path", None) or type(tokenizer).__name__,
            fix="Use the model's own tokenizer, or a model with that vocabulary size.",
        )
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise RequestError(
            f"blocks are longer than the model's {positions} positions.",
            field="data.length",
            value=length,
            fix=f"Use at most {positions}.",
        )


def new_config(recipe: ModelRecipe, tokenizer: Any, length: int) -> Any:
    """The config of a new model; sizes and tokens that the recipe omits follow from tokenizer and data.

    Raises:
        RequestError: an unknown model type or key.
    """
    register()
    values = dict(recipe.config or {})
    kind = values.pop("model_type", None)
    if kind is None or kind not in CONFIG_MAPPING:
        raise RequestError("is not a model type of transformers.", field="model.config.model_type", value=kind)
    known = AutoConfig.for_model(kind).to_dict()
    for key, value in values.items():
        if key not in known and key not in CONFIG_MAPPING[kind].attribute_map:
            raise unknown_key(f"model.config.{key}", value, list(known))
    dense = values.get("text_config", {}) if kind == GENERIC_TYPE else values
    tokens = {key: getattr(tokenizer, key, None) for key in _TOKEN_KEYS}
    if tokens["pad_token_id"] in (tokens["bos_token_id"], tokens["eos_token_id"]):
        tokens["pad_token_id"] = None  # the embedding of a config's padding token is zero and learns nothing
    defaults = {"vocab_size": len(tokenizer), **tokens}
    if not {"max_position_embeddings", "n_positions"} & set(dense):
        defaults["max_position_embeddings"] = length
    dense = {**defaults, **dense}
    values = {**values, "text_config": dense} if kind == GENERIC_TYPE else dense
    try:
        return AutoConfig.for_model(kind, **values)
    except (TypeError, ValueError) as error:
        raise RequestError(f"is not a config of {kind}: {error}", field="model.config", value=recipe.config) from error


def _new_model(recipe: TrainRecipe, tokenizer: Any) -> Any:
    config = new_config(recipe.model, tokenizer, recipe.data.length)
    check_fit(config.get_text_config(), tokenizer, recipe.data.length)
    with torch.random.fork_rng(devices=[]):  # of the CPU alone: others would start every GPU
        torch.manual_seed(recipe.seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def parent_provenance(folder: Path | None) -> dict[str, Any]:
    """The content of the smolmoe.json of a checkpoint; empty if it does not exist."""
    return {} if folder is None else read_provenance(folder)


def granularity_of(provenance: Mapping[str, Any]) -> int:
    """G of an upcycled model; 1 of any other."""
    return int((provenance.get("layout") or {}).get("granularity") or 1)


def run_provenance(
    stage: str, recipe: TrainRecipe | AlignRecipe, source: Path | None, parent: Mapping[str, Any], *packages: str
) -> dict[str, Any]:
    """The content of `smolmoe.json` of a trained model.

    Args:
        stage: train or align.
        source: the checkpoint that training started from; None for a new model.
        parent: its provenance.
        packages: further packages that affect the result.
    """
    trained = None if source is None else {"folder": source.name, "sha256": fingerprint(open_checkpoint(source))}
    return {
        "schema_version": SCHEMA_VERSION,
        "stage": stage,
        "request": recipe.model_dump(mode="json", exclude={"out"}),
        "source": trained,
        **{key: parent[key] for key in ("target", "layout", "origin") if key in parent},
        "seed": recipe.seed,
        "versions": versions(*packages),
        "command": command(),
    }
