"""Every name of another library that it may change without a word: an upgrade fails here, by that name.

Listed is what begins with an underscore, what is imported from inside a library that documents only its top level, and
what our subclasses override. A use in `src` that is not listed fails too, and so does an entry without a use.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import smolmoe

pytestmark = pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'")

SRC = Path(smolmoe.__file__).parent
LIBRARIES = ("accelerate", "datasets", "huggingface_hub", "lm_eval", "peft", "transformers", "trl")

# Owner -> name -> what it takes, with defaults; `takes` some among many; or what else it is.
_BY_OWNER = {
    "accelerate:Accelerator.prepare_model.": {
        "_original_forward": "attribute",
    },
    "accelerate.utils:": {
        "gather_object": "(object)",
    },
    "datasets.utils:": {
        "disable_progress_bars": "()",
    },
    "lm_eval.models.huggingface:": {
        "HFLM": "takes pretrained, tokenizer, backend, batch_size, truncation",
    },
    "lm_eval.tasks:": {
        "TaskManager": "(verbosity=None, include_path=None, include_defaults=True, metadata=None)",
    },
    "torch._inductor:": {
        "list_mode_options": "(mode=None, dynamic=None)",
    },
    "torch.nn:Module.": {
        "_apply": "(self, fn, recurse=True)",
        "_modules": "attribute",
        "_parameters": "attribute",
    },
    "torch.ops:aten.": {
        "_efficient_attention_forward": "takes query, key, value",
        "_flash_attention_forward": "takes query, key, value",
        "_grouped_mm": "(self, mat2, offs, bias, out_dtype)",
        "_scaled_dot_product_cudnn_attention": "takes query, key, value",
        "_scaled_dot_product_efficient_attention": "takes query, key, value",
        "_scaled_dot_product_flash_attention": "(query, key, value, dropout_p, is_causal, return_debug_mask, scale)",
        "_scaled_dot_product_flash_attention_for_cpu": "(query, key, value, dropout_p, is_causal, attn_mask, scale)",
        "_scaled_dot_product_flash_attention_for_cpu_backward": "takes grad_out, query, key, value",
    },
    "torch.ops:transformers.": {
        "grouped_mm_fallback": "(input, weight, offs)",
        "grouped_mm_fallback_backward": "(input, weight, offs, grad_output)",
    },
    "torch.optim.lr_scheduler:LRScheduler.": {
        "_last_lr": "attribute",
    },
    "torch.utils._python_dispatch:": {
        "is_in_torch_dispatch_mode": "(include_infra_modes=True)",
    },
    "torch.utils.flop_counter:": {
        "FlopCounterMode": "(mods=None, depth=2, display=True, custom_mapping=None)",
        "sdpa_backward_flop_count": "(grad_out_shape, query_shape, key_shape, value_shape)",
        "sdpa_flop_count": "(query_shape, key_shape, value_shape)",
    },
    "torch.utils.flop_counter:FlopCounterMode.": {
        "_get_raw": "attribute",
    },
    "transformers.activations:": {
        "ACT2FN": "attribute",
        "SiLUActivation": "(*args, **kwargs)",
    },
    "transformers.conversion_mapping:": {
        "get_model_conversion_mapping": "(model, key_mapping=None, hf_quantizer=None, add_legacy=True)",
    },
    "transformers.core_model_loading:": {
        "WeightConverter": "(source_patterns, target_patterns, operations, force_cpu=False)",
        "WeightRenaming": "(source_patterns, target_patterns)",
        "convert_and_load_state_dict_in_model": "(model, state_dict, load_config, disk_offload_index=None)",
        "rename_source_key": "takes source_key, weight_renamings, weight_converters, base_model_prefix",
    },
    "transformers.initialization:": {
        "normal_": "(tensor, mean=0.0, std=1.0, generator=None)",
        "zeros_": "(tensor)",
    },
    "transformers.integrations.moe:": {
        "ALL_EXPERTS_FUNCTIONS": "attribute",
        "_default_apply_gate": "(self, gate_up_out)",
        "batched_mm_experts_forward": "(self, hidden_states, top_k_index, top_k_weights)",
        "grouped_mm_experts_forward": "(self, hidden_states, top_k_index, top_k_weights)",
        "sonicmoe_experts_forward": "(self, hidden_states, top_k_index, top_k_weights)",
    },
    "transformers.integrations.moe:use_experts_implementation.": {
        "_apply_gate": "attribute",
        "_is_expert_parallel": "attribute",
    },
    "transformers.integrations.sonicmoe:": {
        "is_sonicmoe_loadable": "(raise_error=False)",
        "load_sonicmoe_kernel": "()",
    },
    "transformers.integrations.integration_utils:": {
        "INTEGRATION_TO_CALLBACK": "attribute",
    },
    "transformers.integrations:": {
        "get_available_reporting_integrations": "()",
        "use_experts_implementation": "takes experts_class",
    },
    "transformers.modeling_layers:GradientCheckpointingLayer.": {
        "_gradient_checkpointing_func": "attribute",
    },
    "transformers.modeling_outputs:": {
        "MoeCausalLMOutputWithPast": "takes loss, aux_loss, logits, cache, hidden_states, attentions, router_logits",
    },
    "transformers.modeling_rope_utils:": {
        "ROPE_INIT_FUNCTIONS": "attribute",
    },
    "transformers.modeling_utils:": {
        "LoadStateDictConfig": "takes device_map, dtype, dtype_plan, weight_mapping",
    },
    "transformers.trainer:": {
        "OPTIMIZER_NAME": "'optimizer.pt'",
        "SCHEDULER_NAME": "'scheduler.pt'",
    },
    "transformers.models.auto.modeling_auto:": {
        "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": "attribute",
    },
    "transformers.trainer_pt_utils:": {
        "safe_globals": "()",
    },
    "transformers.utils.logging:": {
        "disable_progress_bar": "()",
        "enable_progress_bar": "()",
        "get_logger": "(name=None)",
        "is_progress_bar_enabled": "()",
    },
    "transformers.utils.output_capturing:": {
        "OutputRecorder": "takes target_class, index, layer_name, class_name",
    },
    "transformers.utils:": {
        "can_return_tuple": "(func)",
    },
    "transformers:GenerationMixin.": {
        "prepare_inputs_for_generation": "takes input_ids, inputs_embeds, cache, kwargs",
    },
    "transformers:PreTrainedConfig.": {
        "_experts_implementation": "property",
        "_name_or_path": "attribute",
        "get_text_config": "(self, decoder=None, encoder=None)",
        "model_type": "''",
        "sub_configs": "property",
        "to_diff_dict": "(self)",
    },
    "transformers:PreTrainedModel.": {
        "_adjust_missing_and_unexpected_keys": "(self, loading_info)",
        "base_model_prefix": "''",
        "_can_record_outputs": "attribute",
        "_can_set_experts_implementation": "()",
        "_from_config": "(config, **kwargs)",
        "_get_dtype_plan": "(self, dtype)",
        "_init_weights": "(self, module)",
        "_initialize_weights": "(self, module, is_custom_code=False)",
        "_is_stateful": "attribute",
        "_keep_in_fp32_modules_strict": "attribute",
        "_keys_to_ignore_on_save": "attribute",
        "_loss_function": "attribute",
        "_supports_attention_backend": "attribute",
        "_supports_flash_attn": "attribute",
        "_supports_flex_attn": "attribute",
        "_supports_sdpa": "attribute",
        "all_tied_weights_keys": "attribute",
        "config_class": "attribute",
        "forward": "(self, *input)",
        "get_decoder": "(self)",
        "get_input_embeddings": "(self)",
        "get_output_embeddings": "(self)",
        "initialize_weights": "(self)",
        "loss_function": "property",
        "resize_token_embeddings": "(self, new_num_tokens=None, pad_to_multiple_of=None, mean_resizing=True)",
        "save_pretrained": "takes save_directory, state_dict",
        "set_input_embeddings": "(self, value)",
        "set_output_embeddings": "(self, new_embeddings)",
        "supports_gradient_checkpointing": "attribute",
    },
    "transformers:Trainer.": {
        "_clip_grad_norm": "(self, model)",
        "_defer_fsdp_gradient_reduction": "(self)",
        "_determine_best_metric": "(self, metrics, trial)",
        "_get_learning_rate": "(self)",
        "_get_output_dir": "(self, trial)",
        "_load_from_checkpoint": "(self, resume_from_checkpoint, model=None)",
        "_load_optimizer_and_scheduler": "(self, checkpoint)",
        "_maybe_log_save_evaluate": "takes tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time",
        "_save": "(self, output_dir=None, state_dict=None)",
        "_save_checkpoint": "(self, model, trial)",
        "_save_optimizer_and_scheduler": "(self, output_dir)",
        "compute_loss": "(self, model, inputs, return_outputs=False, num_items_in_batch=None)",
        "create_optimizer": "(self, model=None)",
        "create_scheduler": "(self, num_training_steps, optimizer=None)",
        "current_gradient_accumulation_steps": "attribute",
        "evaluate": "(self, eval_dataset=None, ignore_keys=None, metric_key_prefix='eval')",
        "is_distributed_loading_by_transformers": "attribute",
        "log": "(self, logs, start_time=None)",
        "model_accepts_loss_kwargs": "attribute",
        "train": "(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None)",
    },
    "transformers:TrainingArguments.": {
        "_n_gpu": "attribute",
        "_setup_devices": "attribute",
    },
    "transformers:TrainerCallback.": {
        "on_log": "(self, args, state, control, **kwargs)",
        "on_optimizer_step": "(self, args, state, control, **kwargs)",
        "on_pre_optimizer_step": "(self, args, state, control, **kwargs)",
        "on_step_begin": "(self, args, state, control, **kwargs)",
        "on_step_end": "(self, args, state, control, **kwargs)",
        "on_train_begin": "(self, args, state, control, **kwargs)",
        "on_train_end": "(self, args, state, control, **kwargs)",
    },
    "trl.experimental.cpo:CPOTrainer.": {
        "_clip_grad_norm": "(self, model)",
        "_get_output_dir": "(self, trial)",
        "_load_from_checkpoint": "(self, resume_from_checkpoint, model=None)",
        "_load_optimizer_and_scheduler": "(self, checkpoint)",
        "_save": "(self, output_dir=None, state_dict=None)",
        "_save_checkpoint": "(self, model, trial)",
        "_send_telemetry": "(self)",
        "compute_loss": "(self, model, inputs, return_outputs=False, num_items_in_batch=None)",
        "create_model_card": "(self, model_name=None, dataset_name=None, tags=None)",
        "create_optimizer": "(self, model=None)",
        "create_scheduler": "(self, num_training_steps, optimizer=None)",
        "tokenize_row": "(self, feature, model=None)",
    },
    "trl.trainer.dpo_trainer:": {
        "DataCollatorForPreference": "takes pad_token_id, max_length, truncation_mode",
    },
    "trl.trainer.dpo_trainer:DataCollatorForPreference.": {
        "torch_call": "(self, examples)",
    },
    "trl:DPOTrainer.": {
        "_clip_grad_norm": "(self, model)",
        "_get_output_dir": "(self, trial)",
        "_load_from_checkpoint": "(self, resume_from_checkpoint, model=None)",
        "_load_optimizer_and_scheduler": "(self, checkpoint)",
        "_prepare_dataset": "(self, dataset, processing_class, args, dataset_name)",
        "_save": "(self, output_dir=None, state_dict=None)",
        "_save_checkpoint": "(self, model, trial)",
        "_send_telemetry": "(self)",
        "compute_loss": "(self, model, inputs, return_outputs=False, num_items_in_batch=None)",
        "create_model_card": "(self, model_name=None, dataset_name=None, tags=None)",
        "create_optimizer": "(self, model=None)",
        "create_scheduler": "(self, num_training_steps, optimizer=None)",
    },
    "trl:SFTTrainer.": {
        "_clip_grad_norm": "(self, model)",
        "_get_output_dir": "(self, trial)",
        "_load_from_checkpoint": "(self, resume_from_checkpoint, model=None)",
        "_load_optimizer_and_scheduler": "(self, checkpoint)",
        "_prepare_dataset": "(self, dataset, processing_class, args, packing, formatting_func, dataset_name)",
        "_save": "(self, output_dir=None, state_dict=None)",
        "_save_checkpoint": "(self, model, trial)",
        "_send_telemetry": "(self)",
        "compute_loss": "(self, model, inputs, return_outputs=False, num_items_in_batch=None)",
        "create_model_card": "(self, model_name=None, dataset_name=None, tags=None)",
        "create_optimizer": "(self, model=None)",
        "create_scheduler": "(self, num_training_steps, optimizer=None)",
    },
}
HOOKS = {owner + name: shape for owner, names in _BY_OWNER.items() for name, shape in names.items()}

# Texts that look like private names: parts of names in files and of labels, attributes of our own; and a named tuple's.
OURS = {"_asdict", "_backbone", "_baseline", "_bias", "_index", "_open", "_parsing", "_stderr", "_type"}
# Of llama.cpp's converter, which the user has and no package index; the worker says which method it lacks.
ELSEWHERE = {"_exit", "_set_vocab_gpt2", "_set_vocab_llama_hf"}


def shape(hook: str) -> str:
    """What a hook takes, with plain defaults, of an operator the names alone; a text; or `attribute`."""
    found = find(hook)
    if hasattr(found, "overloads"):
        return f"({', '.join(parameters(found))})"
    if callable(found):
        return f"({', '.join(map(taken, inspect.signature(found).parameters.values()))})"
    return repr(found) if isinstance(found, str) else "property" if isinstance(found, property) else "attribute"


def parameters(found: Any) -> list[str]:
    if hasattr(found, "overloads"):
        return [argument.name for argument in found.default._schema.arguments]
    return list(inspect.signature(found).parameters)


def find(hook: str) -> Any:
    module, _, path = hook.partition(":")
    if path.startswith("transformers."):
        import transformers.integrations.moe  # noqa: F401  # defines its operators
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        owner = found
        if isinstance(found := inspect.getattr_static(owner, name, None), property):
            return found
        if not hasattr(owner, name):  # set by one of its methods, perhaps
            return None if re.search(rf"\b{name}\b", inspect.getsource(owner)) else "not there"
        found = getattr(owner, name)
    return found


def taken(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    if parameter.default is parameter.empty:
        return stars + parameter.name
    is_plain = isinstance(parameter.default, str | int | float | None)
    return f"{parameter.name}={parameter.default!r}" if is_plain else f"{parameter.name}=..."


@pytest.mark.parametrize("owner", _BY_OWNER)
def test_hooks_are_what_they_were(owner: str) -> None:
    expected = _BY_OWNER[owner]
    assert {name: now(owner + name, shape) for name, shape in expected.items()} == expected


def now(hook: str, expected: str) -> str:
    """The hook's shape, in the form expected."""
    if not expected.startswith("takes "):
        return shape(hook)
    known = set(parameters(find(hook)))
    return f"takes {', '.join(name for name in expected.removeprefix('takes ').split(', ') if name in known)}"


# --- nothing is used that is not listed ------------------------------------------------------------------------------


@functools.cache
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SRC.rglob("*.py"))}


def is_private(name: str) -> bool:
    return re.fullmatch(r"_[A-Za-z]\w*", name) is not None


def is_own(node: ast.expr) -> bool:
    """`self`, `cls`, `super()`."""
    return ast.unparse(node) in ("self", "cls", "super()")


def defined(tree: ast.AST) -> set[str]:
    """Names of functions, classes, variables, and attributes that are set on `self`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
            found.add(node.attr)
    return found


def private_names(tree: ast.Module, ours: set[str]) -> Iterator[tuple[str, int]]:
    """Names and lines: attributes and imports that are not defined here, and texts that are such names."""
    here = defined(tree)
    in_texts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if node.attr not in (ours if is_own(node.value) else here - of_common_classes()):
                yield node.attr, node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in in_texts:
            if is_private(node.value):
                yield node.value, node.lineno
        elif isinstance(node, ast.Import | ast.ImportFrom):
            parts = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            if not parts[0].startswith("smolmoe"):
                yield from ((part, node.lineno) for name in parts for part in name.split(".") if is_private(part))


@functools.cache
def of_common_classes() -> set[str]:
    """Private names that our objects might share with theirs."""
    import torch
    import transformers

    classes: list[Any] = [torch.Tensor, torch.nn.Module, transformers.PreTrainedModel, transformers.Trainer]
    return {name for cls in classes for name in dir(cls) if is_private(name)} | {"_modules", "_parameters", "_buffers"}


def inner_names(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """`module:name` of what comes from inside one of the libraries."""
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and re.fullmatch(rf"({'|'.join(LIBRARIES)})(\.\w+)+", str(node.value)):
            yield f"{node.value}:", node.lineno  # imported by a function
        if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] not in LIBRARIES:
            continue
        for alias in node.names:
            whole = f"{node.module}.{alias.name}"
            if is_module(whole):
                modules[alias.asname or alias.name] = whole
            elif "." in str(node.module):
                yield f"{node.module}:{alias.name}", node.lineno
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            yield f"{modules[node.value.id]}:{node.attr}", node.lineno


def is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def listed() -> set[str]:
    """The last parts of the hooks, and private parts of their modules."""
    modules = {part for hook in HOOKS for part in hook.partition(":")[0].split(".") if is_private(part)}
    return {re.split(r"[:.]", hook)[-1] for hook in HOOKS} | modules


def test_every_private_name_in_use_is_listed() -> None:
    ours = set().union(*map(defined, trees().values()))
    known = listed() | OURS | ELSEWHERE
    missing = [
        f"{path.relative_to(SRC)}:{line}: {name}"
        for path, tree in trees().items()
        for name, line in private_names(tree, ours)
        if name not in known
    ]
    assert not missing, "\n".join(missing)


def test_everything_from_inside_a_library_is_listed() -> None:
    missing = [
        f"{path.relative_to(SRC)}:{line}: {name}"
        for path, tree in trees().items()
        for name, line in inner_names(tree)
        if not any(hook.startswith(name) if name.endswith(":") else hook == name for hook in HOOKS)
    ]
    assert not missing, "\n".join(missing)


def test_every_override_is_listed() -> None:
    missing = sorted(overrides() - HOOKS.keys())
    assert not missing, "\n".join(missing)


def overrides() -> set[str]:
    """What our classes define that a class of another library, which they stand on, has as well."""
    found = set()
    for cls in our_classes():
        mine = [base for base in cls.__mro__ if base.__module__.startswith("smolmoe")]
        theirs = [base for base in cls.__mro__ if base.__module__.split(".")[0] in (*LIBRARIES, "torch")]
        for name in set().union(*map(written_in, mine)):
            owner = next((base for base in theirs if hasattr(base, name)), None)
            if owner is not None and (is_private(name) or not owner.__module__.startswith("torch.")):
                found.add(f"{public_place(owner)}.{name}")
    return found


def our_classes() -> set[type]:
    names = [info.name for info in pkgutil.walk_packages([str(SRC)], "smolmoe.") if not info.name.endswith("__main__")]
    modules = [importlib.import_module(name) for name in names]
    found = {cls for module in modules for cls in vars(module).values() if isinstance(cls, type)}
    return {cls for cls in found if cls.__module__.startswith("smolmoe")}


@functools.cache
def written_in(cls: type) -> set[str]:
    """Methods and attributes of a class, and private ones that its methods set."""
    nodes = [node for node in ast.walk(trees()[Path(inspect.getfile(cls))]) if isinstance(node, ast.ClassDef)]
    found = set().union(*(defined(node) for node in nodes if node.name == cls.__name__))
    return {name for name in found if is_private(name) or (name in vars(cls) and not name.startswith("__"))}


def public_place(cls: type) -> str:
    """`module:Class`, by the outermost module that has it."""
    parts = cls.__module__.split(".")
    modules = [".".join(parts[: length + 1]) for length in range(len(parts))]
    return (
        f"{next(m for m in modules if getattr(importlib.import_module(m), cls.__name__, None) is cls)}:{cls.__name__}"
    )


def test_no_hook_is_listed_in_vain() -> None:
    words = set(re.findall(r"\w+", "\n".join(path.read_text(encoding="utf-8") for path in trees())))
    assert [hook for hook in HOOKS if re.split(r"[:.]", hook)[-1] not in words] == []
