"""Checks of a recipe's `trainer` against libraries, engine and machine, before text or weights are read.

`smolmoe.recipe.trainer` checks types and ranges of single values.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from transformers import Trainer, get_scheduler
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from smolmoe.errors import RequestError

# Optimisers of other packages: beginning of their name in transformers -> imported module, and package of pip.
_OPTIMISERS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        ("adamw_8bit", "adamw_bnb", "ademamix", "lion", "paged_", "rmsprop_bnb"), ("bitsandbytes", "bitsandbytes")
    ),
    **dict.fromkeys(("adamw_torch_4bit", "adamw_torch_8bit"), ("torchao", "torchao")),
    **dict.fromkeys(("lomo", "adalomo"), ("lomo_optim", "lomo-optim")),
    "schedule_free": ("schedulefree", "schedulefree"),
    "galore": ("galore_torch", "galore-torch"),
    "apollo": ("apollo_torch", "apollo-torch"),
    "grokadamw": ("grokadamw", "grokadamw"),
    "stable_adamw": ("optimi", "torch-optimi"),
    "adamw_anyprecision": ("torchdistx", "torchdistx"),
    "adamw_torch_xla": ("torch_xla", "torch_xla"),
    "adamw_torch_npu": ("torch_npu", "torch_npu"),
}
# Optimisers that this engine cannot use: beginning or end of their names -> reason.
_IN_BACKWARD = "it updates weights inside the backward pass, before router terms and gradient norms are known"
_UNFIT = {
    "lomo": _IN_BACKWARD,
    "adalomo": _IN_BACKWARD,
    "layerwise": _IN_BACKWARD,
    "schedule_free": "it trains different weights from those used for inference, and would measure and save the former",
}
# Arguments in `optim_args` that transformers reads; it ignores others silently.
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adafactor", "muon"), ()),
    "sgd": ("momentum", "dampening", "weight_decay", "nesterov"),
    "adagrad": ("lr_decay", "weight_decay", "eps"),
    "rmsprop": ("momentum", "alpha", "eps", "weight_decay", "centered"),
}
_LOW_RANK = ("galore", "apollo")
_LOGGERS = {"azure_ml": "azureml", "flyte": "flytekit", "kubeflow": "kubeflow"}  # others have the name of their package
_CHECKPOINTING = ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")
_CHECKPOINTING_OPTIONS = ("use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop")
_LOADING = ("dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context")
_TRACKIO = ("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id")


def check_combinations(given: Mapping[str, Any], values: Mapping[str, Any], device: str) -> None:
    """Raises RequestError for missing packages, and values that this engine or this machine cannot use.

    Args:
        given: the recipe's values under `trainer`.
        values: the same over the defaults.
        device: to compute on.
    """
    _check_optimiser(given, str(values["optim"]))
    _check_loggers(given, values.get("report_to"))
    _check_kernels(given, device)
    if values.get("fp16") and device.partition(":")[0] == "cpu":
        raise _refused("fp16", True, "fp16 needs a GPU", "Use bf16: true, or remove it.")
    if values.get("activation_offloading") and device.partition(":")[0] == "cpu":
        raise _refused("activation_offloading", True, "it offloads from a GPU to the CPU", "Remove it.")
    for name in _CHECKPOINTING:
        options = given.get(name)
        if not isinstance(options, Mapping):
            continue
        unknown = next((key for key in options if key not in _CHECKPOINTING_OPTIONS), None)
        if unknown is not None:
            fix = f"Options: {', '.join(_CHECKPOINTING_OPTIONS)}."
            raise _refused(f"{name}.{unknown}", options[unknown], "torch's checkpointing has no such option", fix)
        if options.get("use_reentrant"):
            raise _refused(
                name, options, "reentrant checkpointing gives router terms no gradient", "Use use_reentrant: false."
            )
    for name in _LOADING:
        if given.get(name) and not values.get("dataloader_num_workers"):
            raise unused(name, given[name], "dataloader_num_workers of 1 or more")
    context = given.get("dataloader_multiprocessing_context")
    if context and context not in multiprocessing.get_all_start_methods():
        raise _refused("dataloader_multiprocessing_context", context, "this system does not support this start method")


def _check_optimiser(given: Mapping[str, Any], name: str) -> None:
    module, package = next(
        (found for start, found in _OPTIMISERS.items() if name.startswith(start)), ("torch", "torch")
    )
    missing = find_spec(module) is None
    why = next((why for part, why in _UNFIT.items() if name.startswith(part) or name.endswith(part)), None)
    if why is not None:
        said = f"transformers refuses it: {module} is not installed; and it" if missing else "this optimiser"
        raise _refused("optim", name, f"{said} cannot be used here: {why}", "Use adamw_torch_fused.")
    if missing:
        raise _missing(module, package, "optim", name)
    known = _ARGUMENTS.get(name)
    for pair in str(given.get("optim_args") or "").replace(" ", "").split(","):
        key = pair.partition("=")[0]
        if key and known is not None and key not in known:
            fix = f"It takes {', '.join(known)}." if known else "Remove it."
            raise _refused("optim_args", given["optim_args"], f"{name} takes no {key}", fix)
    if given.get("optim_target_modules") and not name.startswith(_LOW_RANK):
        raise unused("optim_target_modules", given["optim_target_modules"], "a low-rank optimiser (galore, apollo)")


def _check_loggers(given: Mapping[str, Any], asked: Any) -> None:
    names = [asked] if isinstance(asked, str) else list(asked or ())
    if names not in (["all"], ["none"]):
        there = {*get_available_reporting_integrations(), "flyte"}
        for name in names:
            if name not in INTEGRATION_TO_CALLBACK:
                known = ", ".join(INTEGRATION_TO_CALLBACK)
                message = f"transformers refuses it: {name} is not supported, only {known} are"
                raise _refused("report_to", asked, message, "Name one of those, none or all.")
            if name not in there or (name == "flyte" and find_spec("flytekit") is None):
                raise _missing(_LOGGERS.get(name, name), _LOGGERS.get(name, name), "report_to", asked)
    for name in _TRACKIO:
        if given.get(name) and "trackio" not in names:
            raise unused(name, given[name], "report_to: trackio")


def _check_kernels(given: Mapping[str, Any], device: str) -> None:
    if given.get("use_liger_kernel"):
        _require("liger_kernel", "liger-kernel", "use_liger_kernel", True)
        if device == "cpu":
            raise _refused("use_liger_kernel", True, "Liger's kernels need a GPU", "Remove it.")
    elif given.get("liger_kernel_config"):
        raise unused("liger_kernel_config", given["liger_kernel_config"], "use_liger_kernel: true")
    backend, mode = (given.get(f"torch_compile_{name}") for name in ("backend", "mode"))
    if backend is not None:
        known = torch.compiler.list_backends(exclude_tags=())
        if backend not in known:
            raise _refused("torch_compile_backend", backend, "no such backend", f"Use one of {', '.join(known)}.")
    if mode is not None:
        from torch._inductor import list_mode_options

        if mode not in list_mode_options():
            raise _refused("torch_compile_mode", mode, "no such mode", f"Use one of {', '.join(list_mode_options())}.")


def refused_by(library: str, build: Callable[[Mapping[str, Any]], Any], given: Mapping[str, Any]) -> Any:
    """The result of `build` for all given values.

    Args:
        library: named in the error.
        build: makes the library's arguments from values over the defaults.

    Raises:
        RequestError: the library refuses them; the error names the value at fault if it is refused alone, too.
    """
    try:
        return build(given)
    except Exception as error:  # the libraries raise many kinds; each means a refused value
        raise _of_library(library, error, *_culprit(build, given)) from error


def _culprit(build: Callable[[Mapping[str, Any]], Any], given: Mapping[str, Any]) -> tuple[str, Any]:
    """The value that is refused alone, or without which the others are accepted."""
    alone = ({name: given[name]} for name in given)
    others = [name for name in reversed([*given]) if _takes(build, {key: given[key] for key in given if key != name})]
    name = next((next(iter(one)) for one in alone if not _takes(build, one)), next(iter(others), None))
    return ("trainer", dict(given)) if name is None else (f"trainer.{name}", given[name])


def _takes(build: Callable[[Mapping[str, Any]], Any], given: Mapping[str, Any]) -> bool:
    try:
        build(given)
    except Exception:
        return False
    return True


def _of_library(library: str, error: Exception, field: str, value: Any) -> RequestError:
    said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return RequestError(f"{library} refuses it: {said}.", field=field, value=value)


def try_out(arguments: Any, steps: int) -> None:
    """Make the optimiser and the schedule of these arguments, so that transformers checks them."""
    kind, options = torch.optim.SGD, {"lr": arguments.learning_rate}
    if not arguments.optim.value.startswith(_LOW_RANK):  # those look for their modules in the model
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, None)
    parameter = torch.nn.Parameter(torch.zeros(1, 1, device=arguments.device))
    optimizer = kind([parameter], **options)
    get_scheduler(
        arguments.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=arguments.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=dict(arguments.lr_scheduler_kwargs or {}),
    )


def _require(module: str, package: str, field: str, value: object) -> None:
    if find_spec(module) is None:
        raise _missing(module, package, field, value)


def _missing(module: str, package: str, field: str, value: object) -> RequestError:
    return _refused(field, value, f"transformers refuses it: {module} is not installed (pip install {package})")


def unused(field: str, value: object, needs: str) -> RequestError:
    """The error for a value under `trainer` without effect."""
    return _refused(field, value, f"it has no effect without {needs}", "Remove it, or add that.")


def _refused(field: str, value: object, message: str, fix: str | None = None) -> RequestError:
    return RequestError(f"{message}.", field=f"trainer.{field}", value=value, fix=fix)
