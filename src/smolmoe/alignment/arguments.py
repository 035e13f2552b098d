"""From a recipe to the configs of TRL: what is passed through, what is ours, what is assumed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from smolmoe.alignment.libraries import require
from smolmoe.core.devices import pick_device
from smolmoe.errors import RequestError
from smolmoe.recipe.align import BETA, LENGTH, AlignRecipe
from smolmoe.recipe.base import check_passed_on, new_names
from smolmoe.training.arguments import DECIDED, on_device, precision
from smolmoe.training.checks import check_combinations, refused_by, try_out

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
    "activation_checkpointing": False,
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
    **DECIDED,
    "data_seed": "seed",
    "beta": "beta",
    "max_length": "data.length",
    "max_completion_length": "data.length",
    "truncation_mode": "data.length: longer sequences are skipped",
    "router_aux_loss_coef": "objective.load_balance, which ignores padding and weights all layers equally",
    "chat_template_path": "data.chat_template",
    "completion_only_loss": "nothing: only answers are trained on",
    "assistant_only_loss": "nothing: only answers are trained on",
    "is_encoder_decoder": "nothing",
    "train_sampling_strategy": "seed",
    **dict.fromkeys(("model_init_kwargs", "trust_remote_code"), "nothing"),
    **dict.fromkeys(
        ("fsdp", "fsdp_config", "deepspeed", "parallelism_config"), "nothing: alignment runs in one process"
    ),
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
    **dict.fromkeys(("dataset_num_proc", "shuffle_dataset", "eos_token", "pad_token"), "nothing"),
    **dict.fromkeys(
        ("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"),
        "nothing: the reference is the initial model",
    ),
}
# Losses that TRL looks at when training has begun only.
_LOSSES = {
    "sft": ("nll", "dft"),
    "dpo": (
        *("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard"),
        *("aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft"),
    ),
    "cpo": ("sigmoid", "hinge", "ipo", "simpo", "alphapo"),
}

_AVERAGING = ("alphapo", "simpo", "ipo")  # of CPO, those by the probability of a mean token
_DIVERGING = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}


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


def check_trainer(recipe: AlignRecipe) -> None:
    """Refuse what is no field of the method's config, what is decided elsewhere, and values that cannot be used.

    Raises:
        RequestError
    """
    _check_keys(recipe)
    given, device = recipe.trainer, pick_device(recipe.device)
    check_combinations(given, {**DEFAULTS[recipe.method], **given}, device)
    _check_losses(recipe)
    steps = max(1, int(given.get("max_steps", 1)))
    build = _builder(recipe, length=LENGTH, save_steps=1, device=device)
    refused_by("TRL", lambda values: try_out(build(values), steps), given)


def _check_losses(recipe: AlignRecipe) -> None:
    """What TRL says of its losses when the model is there, or in the first step, only."""
    given, known = recipe.trainer, _LOSSES[recipe.method]
    losses = given.get("loss_type", ())
    losses = [losses] if isinstance(losses, str) else losses
    for name in losses:
        if name not in known:
            raise _refused("loss_type", name, f"Unknown loss type {name}", f"Use {', '.join(known)}.")
    if recipe.method == "cpo" and given.get("alpha") and not {*losses} & {*_AVERAGING}:
        loss, fix = ", ".join(losses) or "sigmoid", f"Add loss_type: {' or '.join(_AVERAGING)}, or leave alpha out."
        message = f"{loss} raises an answer's full probability to this power, which is 0 for all but short answers"
        raise RequestError(f"{message}: the loss is NaN.", field="trainer.alpha", value=given["alpha"], fix=fix)
    if recipe.method == "cpo" and given.get("simpo_gamma") and "simpo" not in losses:
        loss, message = ", ".join(losses) or "sigmoid", "only the SimPO loss has this margin, so it has no effect on"
        fix = "Add loss_type: simpo, or remove it."
        raise RequestError(f"{message} {loss}.", field="trainer.simpo_gamma", value=given["simpo_gamma"], fix=fix)
    smoothing = given.get("label_smoothing", 0)
    if ("exo_pair" in losses and smoothing == 0) or ("robust" in losses and smoothing >= 0.5):
        raise _refused("label_smoothing", smoothing, f"{', '.join(losses)} needs one above 0 and below 0.5")
    if given.get("use_weighting") and {"aot", "aot_unpaired"} & {*losses}:
        raise _refused("use_weighting", True, f"{', '.join(losses)} takes no weights", "Remove it.")
    divergence = given.get("f_divergence_type", "reverse_kl")
    if divergence != "reverse_kl" and not {*losses} <= _DIVERGING:
        raise _refused("f_divergence_type", divergence, f"{', '.join(losses)} takes only reverse_kl", "Remove it.")
    if recipe.method != "sft" and given.get("label_smoothing_factor"):
        value = given["label_smoothing_factor"]
        raise _refused(
            "label_smoothing_factor", value, "a preference loss does not smooth tokens", "Use label_smoothing."
        )
    if given.get("save_strategy") == "best":
        raise _refused("save_strategy", "best", "nothing is measured during training", "Use steps.")


def _refused(field: str, value: object, message: str, fix: str | None = None) -> RequestError:
    return RequestError(f"TRL refuses it: {message}.", field=f"trainer.{field}", value=value, fix=fix)


def _check_keys(recipe: AlignRecipe) -> None:
    known = [field.name for field in fields(config_class(recipe.method))]
    check_passed_on(recipe.trainer, known, _OURS)


def trainer_arguments(recipe: AlignRecipe, *, length: int, save_steps: int, device: str) -> Any:
    """The config of one run, with everything off that would count, cut or measure a second time.

    Args:
        length: tokens of an example at most.
        save_steps: steps between checkpoints where the recipe does not say.

    Raises:
        RequestError: a value that TRL does not take; keys are `check_trainer`'s to look at.
    """
    return refused_by("TRL", _builder(recipe, length=length, save_steps=save_steps, device=device), recipe.trainer)


def _builder(recipe: AlignRecipe, *, length: int, save_steps: int, device: str) -> Callable[[Mapping[str, Any]], Any]:
    """What makes the config of values under `trainer`."""
    config, beta = config_class(recipe.method), recipe.beta or BETA

    def build(given: Mapping[str, Any]) -> Any:
        values = {"save_strategy": "steps", "save_steps": save_steps, **precision(device, given)}
        values |= {**DEFAULTS[recipe.method], **new_names(given)}
        values |= {"output_dir": os.path.realpath(recipe.out), "seed": recipe.seed, "use_cpu": device == "cpu"}
        values |= {"remove_unused_columns": False, "logging_nan_inf_filter": False, "eval_strategy": "no"}
        values["max_length"] = length
        values |= {} if recipe.method == "cpo" else {"router_aux_loss_coef": 0.0}
        values |= {} if recipe.method == "sft" else {"beta": beta}
        return on_device(config(**values), device)

    return build
