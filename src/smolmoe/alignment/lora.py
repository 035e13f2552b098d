"""Low-rank adapters (arXiv 2106.09685) through PEFT, on the attention and on stacked experts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Conv1D

from smolmoe.alignment.libraries import require
from smolmoe.errors import RequestError, TargetError
from smolmoe.moe.gating import gate_spec
from smolmoe.moe.routing import find_routers
from smolmoe.moe.structure import expert_parameters, find_layers
from smolmoe.recipe.align import LoraRecipe

logger = logging.getLogger(__name__)

# Names of an expert's matrices in Llama-like models, Mixtral and Granite, and of their modules.
_IN_EXPERTS = (
    *("gate_proj", "up_proj", "down_proj", "gate_up_proj", "w1", "w2", "w3", "input_linear", "output_linear"),
    *("experts", "mlp", "block_sparse_moe", "feed_forward", "c_fc", "c_proj", "fc1", "fc2"),
)


def lora_config(recipe: LoraRecipe, model: nn.Module, *, train_routers: bool) -> Any:
    """PEFT's config for a model that is not wrapped yet.

    A stacked expert tensor [E, out, in] gets E adapters, A [E * r, in] and B [out, E * r]; the adapter of an expert
    without tokens gets no gradient. Routers are small, so trained ones are stored in full next to the adapters; the
    reference pass of DPO, in which adapters are off, uses the original routers.

    Raises:
        RequestError: the model lacks a target, or is dense and experts are requested.
        TargetError: experts that are not stacked tensors.
    """
    peft = require("peft")
    routers = find_routers(model)
    if recipe.experts and not routers:
        raise RequestError("the model is dense: it has no experts.", field="lora.experts", value=True, fix="Remove it.")
    names = _linear_names(model, recipe)
    kept = [_name_of(model, router) for _, router in routers] if train_routers else None
    return peft.LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=names,
        target_parameters=_expert_names(model) if recipe.experts else None,
        modules_to_save=kept,
        task_type="CAUSAL_LM",
    )


def load_adapters(model: Any, folder: Path) -> None:
    """Load the adapters (and routers) of a checkpoint into a wrapped model."""
    require("peft")
    from peft import load_peft_weights, set_peft_model_state_dict

    set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))


def _linear_names(model: nn.Module, recipe: LoraRecipe) -> list[str]:
    """Full names of the linear modules with the recipe's names; by default those of the attention."""
    path, _ = find_layers(model)
    linear = [name for name, module in model.named_modules() if _is_linear(module) and name.startswith(f"{path}.")]
    targets = recipe.targets
    if targets is None:
        return [name for name in linear if "attn" in name or "attention" in name]
    words = _words_of_experts(model)
    if targets == "all-linear":
        if words and not recipe.experts:
            raise _means_experts(targets, "the experts are stacked tensors, not linear modules")
        return linear
    for target in targets:
        found = [name for name in linear if _is_called(name, target)]
        if not found and target.rpartition(".")[2] in words:
            if recipe.experts:
                continue  # `lora.experts` adds its adapters
            raise _means_experts(target, "in the experts it is part of stacked tensors; no linear module has this name")
        if not found:
            there = sorted({name.rpartition(".")[2] for name in linear})
            raise RequestError(
                "no linear module in the model's layers has this name.",
                field="lora.targets",
                value=target,
                fix=f"Modules: {', '.join(there)}." + (" For the experts use lora.experts: true." if words else ""),
            )
        if target in words and not recipe.experts:
            logger.warning(
                "lora.targets: %s is adapted in %s and similar modules, not in the routed experts, which are "
                "stacked tensors; lora.experts: true adapts those.",
                target,
                found[0],
            )
    return [name for name in linear if any(_is_called(name, target) for target in targets)]


def _is_called(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _means_experts(target: str, why: str) -> RequestError:
    return RequestError(
        f"{why}.",
        field="lora.targets",
        value=target,
        fix="Use lora.experts: true, and only linear modules as targets.",
    )


def _words_of_experts(model: nn.Module) -> set[str]:
    """Names of the matrices of stacked experts: in memory, on disk, and in the dense model."""
    _, layers = find_layers(model)
    words: set[str] = set()
    for index, router in find_routers(model):
        for name, tensor in expert_parameters(layers[index], router, gate_spec(router).experts).items():
            if tensor.ndim == 3 and any(tensor is parameter for parameter in layers[index].parameters()):
                words |= {*name.split("."), *_IN_EXPERTS}
    return words


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _expert_names(model: nn.Module) -> list[str]:
    """Full names of the stacked 3-D expert tensors of every MoE layer."""
    _, layers = find_layers(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = []
    for index, router in find_routers(model):
        tensors = expert_parameters(layers[index], router, gate_spec(router).experts)
        stacked = [tensor for tensor in tensors.values() if tensor.ndim == 3 and id(tensor) in names]
        if not stacked:
            raise TargetError(
                "its experts are not stacked tensors, so adapters cannot be added to them.",
                field="lora.experts",
                value=type(model).__name__,
                fix="Name the experts' linear modules as lora.targets.",
            )
        found += [names[id(tensor)] for tensor in stacked]
    return found


def _name_of(model: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


def trainable(model: nn.Module) -> int:
    """The number of trained parameters; tied weights count once, on the meta device, too."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    return sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and name not in tied)
