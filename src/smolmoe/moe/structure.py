"""Locate the parts of a transformers causal LM by inspection: decoder layers, FFNs, experts."""

from __future__ import annotations

import torch
from torch import nn

from smolmoe.errors import SourceError

# What mixes tokens is not the FFN; every class of transformers has one of these in its name or its module's.
_MIXERS = ("attn", "attention", "mamba", "mixer", "conv", "recurrent", "rglru", "xlstm", "deltanet", "timemix")


def find_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The decoder layers and their module path, e.g. `("model.layers", ...)`: the largest outermost ModuleList.

    Raises:
        SourceError: the model has no list of layers.
    """
    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{other}.") for other in lists)
        if isinstance(module, nn.ModuleList) and len(module) and not inside:
            lists[name] = module
    if not lists:
        raise SourceError(
            "the model keeps its decoder layers in no ModuleList.", field="model", value=type(model).__name__
        )
    name = max(lists, key=lambda n: sum(p.numel() for p in lists[n].parameters()))
    return name, lists[name]


def ffn_parts(layer: nn.Module) -> tuple[nn.Module, ...]:
    """The submodules of a decoder layer whose outputs add up to its FFN's output, all fed the same x [B, S, D].

    One (`mlp`) in almost every class; two where routed and shared experts are siblings (GraniteMoeShared). Empty where
    the FFN is not a separate module (projections directly in the layer).
    """
    parts = []
    for name, child in layer.named_children():
        label = f"{name} {type(child).__name__}".lower()
        has_matrix = any(p.ndim >= 2 for p in child.parameters())
        is_projection = not list(child.children())
        if has_matrix and not is_projection and not any(word in label for word in _MIXERS):
            parts.append(child)
    return tuple(parts)


def expert_parameters(layer: nn.Module, router: nn.Module, experts: int) -> dict[str, torch.Tensor]:
    """Every tensor of the routed experts of a layer, stacked over experts: name -> [E, ...].

    Args:
        layer: a decoder layer.
        router: the layer's router; its own parameters are no expert's.
        experts: E.
    """
    own = {id(p) for p in router.parameters()}
    found: dict[str, torch.Tensor] = {}
    for part in ffn_parts(layer):
        for name, module in part.named_modules():
            if isinstance(module, nn.ModuleList) and len(module) == experts:
                found.update(_stacked(name, module))
            for key, tensor in module.named_parameters(recurse=False):
                # A shared expert's matrix could have E rows by chance, but it lies in no module of that name.
                if "expert" in name and "shared" not in name and tensor.shape[0] == experts and id(tensor) not in own:
                    found.setdefault(f"{name}.{key}", tensor)
    return found


def _stacked(name: str, modules: nn.ModuleList) -> dict[str, torch.Tensor]:
    keys = [key for key, _ in modules[0].named_parameters()]
    return {f"{name}.{key}": torch.stack([module.get_parameter(key) for module in modules]) for key in keys}
