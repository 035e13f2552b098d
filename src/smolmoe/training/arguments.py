"""From a recipe to transformers' TrainingArguments: what is passed through, what is ours, what is assumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from smolmoe.core.devices import kind, pick_device
from smolmoe.recipe import TrainRecipe
from smolmoe.recipe.base import check_passed_on, new_names
from smolmoe.training.checks import check_combinations, refused_by, try_out

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
# What the engine or the command decides, of a training and of an alignment: the field, and where the user says it
# instead; "nothing" and the reason if it cannot be set.
DECIDED: dict[str, str] = {
    "output_dir": "out",
    "seed": "seed",
    "use_cpu": "device",
    "resume_from_checkpoint": "`resume`",
    "local_rank": "torchrun, which numbers the processes",
    "metric_for_best_model": "nothing: the held-out loss decides",
    "greater_is_better": "nothing: the held-out loss decides",
    "remove_unused_columns": "nothing",
    "use_cache": "nothing",
    "logging_nan_inf_filter": "nothing: a loss that is not a number stops the run",
    "auto_find_batch_size": "per_device_train_batch_size: another batch size would change the training",
    "ignore_data_skip": "nothing: a resumed run continues where it was",
    "restore_callback_states_from_checkpoint": "nothing: a resumed run continues where it was",
    "enable_jit_checkpoint": "nothing: an interrupted run is resumed from its last checkpoint",
    "save_only_model": "nothing: a checkpoint without its optimiser could not be resumed exactly",
    "accelerator_config": "nothing: the engine controls batches, their order and their accumulation",
    "dataloader_in_order": "nothing: batches out of order are not reproducible",
    "label_names": "nothing: every token of a block is a label, or every token of an answer",
    "length_column_name": "nothing: sequences are not grouped by length",
    "skip_memory_metrics": "nothing: metrics.jsonl records memory",
    "push_to_hub": "smolmoe push, which uploads the finished model",
    **dict.fromkeys(
        ("hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision"),
        "smolmoe push, which uploads the finished model",
    ),
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), "nothing"),
    **dict.fromkeys(
        (
            "per_device_eval_batch_size",
            "prediction_loss_only",
            "eval_do_concat_batches",
            "eval_use_gather_object",
            "eval_accumulation_steps",
            "include_for_metrics",
            "batch_eval_metrics",
            "bf16_full_eval",
            "fp16_full_eval",
        ),
        "nothing: held-out losses are measured by smolmoe, in the dtype of the weights",
    ),
}
_OURS = {
    **DECIDED,
    "data_seed": "data.seed",
    "load_best_model_at_end": "best/, the checkpoint with the lowest held-out loss, or `resume='best'`",
    "train_sampling_strategy": "data.seed",
    **dict.fromkeys(("fsdp", "fsdp_config", "deepspeed", "parallelism_config"), "parallel: fsdp"),
    **dict.fromkeys(("eval_strategy", "eval_steps", "eval_delay", "eval_on_start"), "evaluation.every, evaluation.at"),
}


def check_trainer(recipe: TrainRecipe) -> None:
    """Refuse what is no field of TrainingArguments, what the engine decides, and values that cannot be used.

    Raises:
        RequestError
    """
    check_trainer_keys(recipe.trainer)
    check_combinations(recipe.trainer, {**DEFAULTS, **recipe.trainer}, pick_device(recipe.device))
    steps = max(1, int(recipe.trainer.get("max_steps", 1)))
    build = _builder(recipe, recipe.out, steps=steps, every=1)
    refused_by("transformers", lambda given: try_out(build(given), steps), recipe.trainer)


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
    return refused_by("transformers", _builder(recipe, folder, steps=steps, every=every), recipe.trainer)


def _builder(
    recipe: TrainRecipe, folder: Path, *, steps: int, every: int
) -> Callable[[Mapping[str, Any]], TrainingArguments]:
    """What makes the arguments of values under `trainer`."""
    device = pick_device(recipe.device)

    def build(given: Mapping[str, Any]) -> TrainingArguments:
        values = {
            "save_strategy": "steps",
            "save_steps": every,
            **precision(device, given),
            **DEFAULTS,
            **new_names(given),
        }
        values |= {"max_steps": steps, "output_dir": str(folder), "seed": recipe.seed, "use_cpu": device == "cpu"}
        arguments = TrainingArguments(
            **values,
            train_sampling_strategy="sequential",  # the order is the data set's own
            remove_unused_columns=False,
            logging_nan_inf_filter=False,
            metric_for_best_model="eval_loss",
            greater_is_better=False,
        )
        return on_device(arguments, device)

    return build


def on_device(arguments: Any, device: str) -> Any:
    """The arguments with one process on this one device.

    By themselves they take the first GPU, and put copies of the model on all others (`torch.nn.DataParallel`), whose
    routers nobody would record.
    """
    if kind(device) == "cuda" and arguments.world_size == 1:
        place = torch.device("cuda", int(device.partition(":")[2] or 0))
        torch.cuda.set_device(place)
        arguments._n_gpu = 1
        arguments.__dict__["_setup_devices"] = place  # a cached property
    return arguments


def precision(device: str, given: Mapping[str, Any] | None = None) -> dict[str, bool]:
    """bf16 autocast where the hardware multiplies bf16 matrices faster than fp32 ones; weights stay in fp32.

    Args:
        given: what the recipe says under `trainer`; with fp16 there is no bf16.
    """
    return {"bf16": bf16_is_fast(device) and not (given or {}).get("fp16")}


def bf16_is_fast(device: str | None = None) -> bool:
    """Whether this device multiplies bf16 matrices in hardware."""
    device = device or pick_device(None)
    if kind(device) == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind(device) == "mps":
        return False
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
