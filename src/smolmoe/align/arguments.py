"""From a recipe to the configs of TRL: what is passed through, what is ours, what is assumed."""

from __future__ import annotations

import os
import warnings
from dataclasses import fields
from typing import Any

from smolmoe.align.libraries import require
from smolmoe.errors import RequestError
from smolmoe.recipe.align import BETA, AlignRecipe
from smolmoe.recipe.base import check_passed_on

_COMMON: dict[str, Any] = {
    "num_train_epochs": 1,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.1,
    "weight_decay": 0.0,
    "adam_beta2": 0.999,
    "max_grad_norm": 1.0,
    "optim": "adamw_torch_fused",
    "logging_steps": 10,
    "save_total_limit": 2,
    "report_to": "tensorboard",
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
}
# Rates and batches of the seed experiments on CoEdIT.
DEFAULTS: dict[str, dict[str, Any]] = {
    "sft": {**_COMMON, "learning_rate": 7e-5, "per_device_train_batch_size": 12},
    "dpo": {
        **_COMMON,
        "learning_rate": 5e-7,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
    },
    "cpo": {**_COMMON, "learning_rate": 5e-7, "per_device_train_batch_size": 8},
}
# What is decided elsewhere: the field, and where the user says it instead.
_OURS = {
    "output_dir": "out",
    "seed": "seed",
    "data_seed": "seed",
    "use_cpu": "device",
    "beta": "beta",
    "max_length": "data.length",
    "max_completion_length": "data.length",
    "truncation_mode": "data.length: what is longer is left out",
    "router_aux_loss_coef": "objective.load_balance, which counts padding out and every layer alike",
    "chat_template_path": "data.chat_template",
    "completion_only_loss": "nothing: answers alone are trained on",
    "resume_from_checkpoint": "--resume",
    "remove_unused_columns": "nothing",
    "logging_nan_inf_filter": "nothing: a loss that is no number stops the run",
    "ignore_data_skip": "nothing: a resumed run goes on where it was",
    "is_encoder_decoder": "nothing",
    "auto_find_batch_size": "per_device_train_batch_size",
    **dict.fromkeys(("do_train", "do_eval", "do_predict", "model_init_kwargs", "trust_remote_code"), "nothing"),
    **dict.fromkeys(("fsdp", "fsdp_config", "deepspeed"), "nothing: alignment runs in one process"),
    **dict.fromkeys(
        (
            "eval_strategy",
            "eval_steps",
            "eval_delay",
            "eval_on_start",
            "load_best_model_at_end",
            "generate_during_eval",
        ),
        "nothing: it is measured before and after",
    ),
    **dict.fromkeys(
        ("packing", "packing_strategy", "eval_packing", "padding_free", "dataset_kwargs", "dataset_text_field"),
        "nothing: an example is a sequence",
    ),
    **dict.fromkeys(("dataset_num_proc", "shuffle_dataset", "eos_token", "pad_token", "sync_ref_model"), "nothing"),
}


def config_class(method: str) -> Any:
    """TRL's config of a method.

    Raises:
        RequestError: TRL is not installed.
    """
    trl = require("trl")
    if method == "cpo":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that CPO is experimental, which its place in TRL says
            return require("trl.experimental.cpo").CPOConfig
    return trl.SFTConfig if method == "sft" else trl.DPOConfig


def check_trainer_keys(recipe: AlignRecipe) -> None:
    """Refuse what is no field of the method's config, and what is decided elsewhere.

    Raises:
        RequestError
    """
    known = [field.name for field in fields(config_class(recipe.method))]
    check_passed_on(recipe.trainer, known, _OURS)


def trainer_arguments(recipe: AlignRecipe, *, length: int, save_steps: int, device: str, bf16: bool) -> Any:
    """The config of one run, with everything off that would count, cut or measure a second time.

    Args:
        length: tokens of an example at most.
        save_steps: steps between checkpoints where the recipe does not say.

    Raises:
        RequestError: a key or a value that TRL does not take.
    """
    check_trainer_keys(recipe)
    values = {"save_strategy": "steps", "save_steps": save_steps, "bf16": bf16}
    values |= {**DEFAULTS[recipe.method], **recipe.trainer}
    values |= {
        "output_dir": os.path.realpath(recipe.out),
        "seed": recipe.seed,
        "use_cpu": device == "cpu",
        "max_length": length,
    }
    values |= {"remove_unused_columns": False, "logging_nan_inf_filter": False, "eval_strategy": "no"}
    if recipe.method == "cpo":
        values["beta"] = recipe.beta or BETA
    else:
        values["router_aux_loss_coef"] = 0.0
        if recipe.method == "dpo":
            values["beta"] = recipe.beta or BETA
    try:
        return config_class(recipe.method)(**values)
    except (ValueError, TypeError, ImportError) as error:
        raise RequestError(f"TRL refuses it: {error}", field="trainer", value=recipe.trainer) from error
