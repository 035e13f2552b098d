"""From a recipe to transformers' TrainingArguments: passed-through values, fixed values and defaults."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch
from transformers import TrainingArguments

from smolmoe.core.devices import kind, pick_device
from smolmoe.recipe import AlignRecipe, TrainRecipe
from smolmoe.recipe.base import check_passed_on, new_names
from smolmoe.training import muon
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
# Fields that the engine or the command decides, in trainings and alignments, and what the user sets instead; "nothing",
# with the reason, if the field cannot be set.
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
    "logging_nan_inf_filter": "nothing: a NaN or infinite loss stops the run",
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
    """Raises RequestError for a key under `trainer` that is unknown or set elsewhere, or an unusable value."""
    steps = max(1, int(recipe.trainer.get("max_steps", 1)))
    build = _builder(recipe, steps=steps, every=1)
    check_values(recipe, "transformers", TrainingArguments, DEFAULTS, _OURS, build)


def training_arguments(recipe: TrainRecipe, *, steps: int, every: int) -> TrainingArguments:
    """The arguments of one run, whose recipe `check_trainer` has checked.

    Args:
        steps: optimiser steps of the whole run.
        every: steps between held-out evaluations, and by default between checkpoints.

    Raises:
        RequestError: a value that TrainingArguments does not take.
    """
    return refused_by("transformers", _builder(recipe, steps=steps, every=every), recipe.trainer)


def _builder(recipe: TrainRecipe, *, steps: int, every: int) -> Callable[[Mapping[str, Any]], TrainingArguments]:
    build = builder(
        recipe,
        TrainingArguments,
        {"save_steps": every, **DEFAULTS},
        max_steps=steps,
        train_sampling_strategy="sequential",  # the order is the data set's own
        metric_for_best_model="eval_loss",
        greater_is_better=False,
    )
    return lambda given: build(_as_transformers_takes(given, steps))


def _as_transformers_takes(given: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Without Muon, which the trainer makes, and with the decay of a schedule in steps where it is a share of them."""
    values = dict(given)
    if values.get("optim") == muon.NAME:
        values["optim"] = muon.BASE
    schedule = values.get("lr_scheduler_kwargs")
    if isinstance(schedule, Mapping) and 0 < (share := schedule.get("num_decay_steps") or 0) < 1:
        values["lr_scheduler_kwargs"] = {**schedule, "num_decay_steps": max(1, round(share * steps))}
    return values


def own_optimizer(recipe: TrainRecipe, arguments: TrainingArguments) -> tuple[Any, dict[str, Any]] | None:
    """The class and the arguments of an optimiser that is not one of transformers; None for all others."""
    if recipe.trainer.get("optim") != muon.NAME:
        return None
    betas = (arguments.adam_beta1, arguments.adam_beta2)
    return muon.Muon, {"lr": arguments.learning_rate, "betas": betas, "eps": arguments.adam_epsilon, "fused": True}


def check_values(
    recipe: TrainRecipe | AlignRecipe,
    library: str,
    config: Any,
    defaults: Mapping[str, Any],
    decided: Mapping[str, str],
    build: Callable[[Mapping[str, Any]], Any],
) -> None:
    """Raises RequestError for values under `trainer` that the library, this engine or this machine cannot use.

    Args:
        config: the library's class, which `build` makes.
        decided: fields that the recipe sets elsewhere, as `check_passed_on` takes them.
    """
    given = recipe.trainer
    check_passed_on(given, [field.name for field in fields(config)], decided)
    check_combinations(given, {**defaults, **given}, pick_device(recipe.device))
    steps = max(1, int(given.get("max_steps", 1)))
    refused_by(library, lambda values: try_out(build(values), steps), given)


def builder(
    recipe: TrainRecipe | AlignRecipe, config: Any, defaults: Mapping[str, Any], **decided: Any
) -> Callable[[Mapping[str, Any]], Any]:
    """A function that makes the library's config from values under `trainer`.

    Args:
        decided: fields that the values cannot change.
    """
    device, folder = pick_device(recipe.device), os.path.realpath(recipe.out)

    def build(given: Mapping[str, Any]) -> Any:
        values = {"save_strategy": "steps", **precision(device, given), **defaults, **new_names(given)}
        values |= {"output_dir": folder, "seed": recipe.seed, "use_cpu": device == "cpu"}
        values |= {"remove_unused_columns": False, "logging_nan_inf_filter": False, **decided}
        return on_device(config(**values), device)

    return build


def on_device(arguments: Any, device: str) -> Any:
    """The arguments, restricted to this device in a single process.

    By default they use the first GPU and put copies of the model on all others (`torch.nn.DataParallel`), whose routers
    nobody would record.
    """
    if kind(device) == "cuda" and arguments.world_size == 1:
        place = torch.device("cuda", int(device.partition(":")[2] or 0))
        torch.cuda.set_device(place)
        arguments._n_gpu = 1
        arguments.__dict__["_setup_devices"] = place  # a cached property
    return arguments


def precision(device: str, given: Mapping[str, Any] | None = None) -> dict[str, bool]:
    """bf16 autocast if the hardware multiplies bf16 matrices faster than fp32 ones; weights stay in fp32.

    Args:
        given: the recipe's values under `trainer`; fp16 turns bf16 off.
    """
    return {"bf16": bf16_is_fast(device) and not (given or {}).get("fp16")}


def bf16_is_fast(device: str) -> bool:
    """Whether this device multiplies bf16 matrices in hardware."""
    if kind(device) == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind(device) == "mps":
        return False
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
