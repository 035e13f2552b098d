"""From a recipe to the configs of TRL: passed-through values, fixed values and defaults."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from smolmoe.alignment.libraries import require
from smolmoe.errors import RequestError
from smolmoe.recipe.align import BETA, LENGTH, AlignRecipe
from smolmoe.training.arguments import DECIDED, builder, check_values
from smolmoe.training.checks import refused_by, unused

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
# Learning rates and batch sizes of the first experiments on CoEdIT.
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
# Fields that are decided elsewhere, and what the user sets instead.
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
# Losses, which TRL checks only after training has started.
_LOSSES = {
    "sft": ("nll", "dft"),
    "dpo": (
        *("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard"),
        *("aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft"),
    ),
    "cpo": ("sigmoid", "hinge", "ipo", "simpo", "alphapo"),
}

_AVERAGING = ("alphapo", "simpo", "ipo")  # losses of CPO on the mean log-probability per token
_DIVERGING = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}


def config_class(method: str) -> Any:
    """TRL's config of a method.

    Raises:
        RequestError: TRL is not installed.
    """
    trl = require("trl")
    if method == "cpo":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the warning that CPO is experimental, which its module path in TRL says
            return require("trl.experimental.cpo").CPOConfig
    return trl.SFTConfig if method == "sft" else trl.DPOConfig


def check_trainer(recipe: AlignRecipe) -> None:
    """Raises RequestError for a key under `trainer` that is unknown or set elsewhere, or an unusable value."""
    config, build = config_class(recipe.method), _builder(recipe, length=LENGTH, save_steps=1)
    _check_losses(recipe)
    check_values(recipe, "TRL", config, DEFAULTS[recipe.method], _OURS, build)


def _check_losses(recipe: AlignRecipe) -> None:
    """Refuse losses that TRL would refuse only with the model or in the first step."""
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
        raise unused("simpo_gamma", given["simpo_gamma"], "loss_type: simpo")
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


def trainer_arguments(recipe: AlignRecipe, *, length: int, save_steps: int) -> Any:
    """The config of one run, whose recipe `check_trainer` has checked; TRL itself does not balance or evaluate.

    Args:
        length: maximum number of tokens of an example.
        save_steps: steps between checkpoints, by default.

    Raises:
        RequestError: a value that TRL does not take.
    """
    return refused_by("TRL", _builder(recipe, length=length, save_steps=save_steps), recipe.trainer)


def _builder(recipe: AlignRecipe, *, length: int, save_steps: int) -> Callable[[Mapping[str, Any]], Any]:
    decided: dict[str, Any] = {"eval_strategy": "no", "max_length": length}
    decided |= {} if recipe.method == "cpo" else {"router_aux_loss_coef": 0.0}
    decided |= {} if recipe.method == "sft" else {"beta": recipe.beta or BETA}
    defaults = {"save_steps": save_steps, **DEFAULTS[recipe.method]}
    return builder(recipe, config_class(recipe.method), defaults, **decided)
