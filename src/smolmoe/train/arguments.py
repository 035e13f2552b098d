"""From a recipe to transformers' TrainingArguments: what is passed through, what is ours, what is assumed."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from smolmoe.errors import RequestError
from smolmoe.recipe import TrainRecipe
from smolmoe.recipe.base import check_passed_on, new_names

DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "learning_rate": 3e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.02,
    "weight_decay": 0.1,
    "adam_beta2": 0.95,
    "max_grad_norm": 1.0,
    "optim": "adamw_torch_fused",
    "logging_steps": 10,
    "save_total_limit": 2,
    "report_to": "tensorboard",
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
    "ddp_find_unused_parameters": False,  # every parameter is used: experts are stacked, idle ones among them
}
# What the engine decides: the field, and where the user says it instead.
_OURS = {
    "output_dir": "out",
    "seed": "seed",
    "data_seed": "data.seed",
    "use_cpu": "device",
    "resume_from_checkpoint": "--resume",
    "load_best_model_at_end": "--resume best, which goes on from the best checkpoint",
    "metric_for_best_model": "nothing: the held-out loss decides",
    "greater_is_better": "nothing: the held-out loss decides",
    "train_sampling_strategy": "data.seed",
    "remove_unused_columns": "nothing",
    "use_cache": "nothing",
    "logging_nan_inf_filter": "nothing: a loss that is no number stops the run",
    "fsdp": "parallel: fsdp",
    "fsdp_config": "parallel: fsdp",
    "auto_find_batch_size": "per_device_train_batch_size: another batch would change what is trained",
    "ignore_data_skip": "nothing: a resumed run goes on where it was",
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), "nothing"),
    **dict.fromkeys(("eval_strategy", "eval_steps", "eval_delay", "eval_on_start"), "evaluation.every, evaluation.at"),
}


def check_trainer_keys(values: dict[str, Any]) -> None:
    """Refuse what is no field of TrainingArguments, and what the engine decides.

    Raises:
        RequestError
    """
    known = [field.name for field in fields(TrainingArguments)]
    check_passed_on(values, known, _OURS)


def training_arguments(recipe: TrainRecipe, folder: Path, *, steps: int, every: int) -> TrainingArguments:
    """The arguments of one run.

    Args:
        folder: of the run; loggers write there.
        steps: optimiser steps of the whole run.
        every: steps between held-out measurements, and between checkpoints where the recipe does not say.

    Raises:
        RequestError: a key or a value that TrainingArguments does not take.
    """
    check_trainer_keys(recipe.trainer)
    device = pick_device(recipe.device)
    values = {
        "save_strategy": "steps",
        "save_steps": every,
        **precision(device),
        **DEFAULTS,
        **new_names(recipe.trainer),
    }
    values |= {"max_steps": steps, "output_dir": str(folder), "seed": recipe.seed, "use_cpu": device == "cpu"}
    try:
        return TrainingArguments(
            **values,
            train_sampling_strategy="sequential",  # the order is the data set's own
            remove_unused_columns=False,
            logging_nan_inf_filter=False,
            metric_for_best_model="eval_loss",
            greater_is_better=False,
        )
    except (ValueError, TypeError, ImportError) as error:
        raise RequestError(f"transformers refuses it: {error}", field="trainer", value=recipe.trainer) from error


def pick_device(asked: str | None) -> str:
    """The device asked for, or the best there is: cuda, mps, cpu.

    Raises:
        RequestError: it is not here.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked is None:
        return next(name for name, available in there.items() if available)
    if not there.get(asked, False):
        usable = [name for name, available in there.items() if available]
        raise RequestError(
            "not a device of this machine.", field="device", value=asked, fix=f"Use {', '.join(usable)}."
        )
    return asked


def precision(device: str) -> dict[str, bool]:
    """bf16 autocast where the hardware multiplies bf16 matrices faster than fp32 ones; weights stay in fp32."""
    return {"bf16": bf16_is_fast(device)}


def bf16_is_fast(device: str | None = None) -> bool:
    """Whether this device multiplies bf16 matrices in hardware."""
    if (device or pick_device(None)) == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "mps":
        return False
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
