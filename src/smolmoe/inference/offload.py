"""Experts in CPU memory: those that a layer's router chooses are copied to the device for its forward."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from smolmoe.errors import RequestError, TargetError
from smolmoe.moe.routing import find_routers
from smolmoe.moe.structure import ffn_parts, find_layers


@dataclass
class Traffic:
    """Transfers to the device.

    Attributes:
        experts_bytes: of all routed experts, in CPU memory.
        budget_bytes: maximum size of experts on the device.
        held_bytes: their size there; never above the budget.
        moved_bytes: copied to the device so far.
        hits, misses: needed experts that were on the device already, and that were not.
    """

    experts_bytes: int = 0
    budget_bytes: int = 0
    held_bytes: int = 0
    moved_bytes: int = 0
    hits: int = 0
    misses: int = 0


def offload_experts(model: nn.Module, *, device: str | torch.device, expert_memory: int | None = None) -> Traffic:
    """Moves all but the routed experts of a model in CPU memory to the device; chosen experts are copied on demand.

    Experts on the device are a least-recently-used cache. Each layer runs its own experts' forward on it, so outputs
    are bitwise those of the whole model on that device. For inference; experts get no gradients.

    Args:
        model: any MoE of transformers with stacked experts, [E, ...] each; changed in place.
        device: to compute on.
        expert_memory: bytes for experts on the device, at least one layer's experts (a prompt may need them all);
            by default one layer's experts, and in every layer those of one token, which the next one often uses, too.

    Returns:
        Running counts of moved and held experts.

    Raises:
        RequestError: a dense model, or memory for less than one layer's experts.
        TargetError: experts that are not stacked.
    """
    modules = experts_modules(model)
    kept = {id(module) for module in modules.values()}
    traffic = Traffic(experts_bytes=sum(_nbytes(module) for module in modules.values()))
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for layer, module in modules.items():
        kinds.setdefault(_kind(module), []).append(layer)
    least = sum(_nbytes(modules[layers[0]]) for layers in kinds.values())
    enough = min(traffic.experts_bytes, least + _one_token(model, modules))
    traffic.budget_bytes = enough if expert_memory is None else expert_memory
    if traffic.budget_bytes < least:
        raise RequestError(
            "a layer's experts do not fit.",
            field="expert_memory",
            value=expert_memory,
            fix=f"Use at least {math.ceil(least / 10_000) / 100} MB.",
        )
    for module in model.modules():
        if id(module) not in kept:
            module._apply(lambda tensor: tensor.to(device), recurse=False)
    for layers in kinds.values():
        # The rest after one layer of each kind is divided in proportion to size.
        own, size = _nbytes(modules[layers[0]]), sum(_nbytes(modules[layer]) for layer in layers)
        share = own + (traffic.budget_bytes - least) * size // traffic.experts_bytes
        cache = _Cache([modules[layer] for layer in layers], torch.device(device), share, traffic)
        for layer in layers:
            modules[layer].forward = partial(_forward, modules[layer], modules[layer].forward, cache)
    return traffic


def experts_modules(model: nn.Module) -> dict[int, Any]:
    """Layer index -> the module that holds a MoE layer's routed experts as stacked parameters [E, ...].

    Raises:
        RequestError: a dense model.
        TargetError: experts that are not stacked in one module.
    """
    routers = find_routers(model)
    if not routers:
        raise RequestError(
            "the model is dense: it has no experts.",
            field="model",
            value=type(model).__name__,
            fix="Use an MoE.",
        )
    _, layers = find_layers(model)
    return {layer: _experts_module(layers[layer], router) for layer, router in routers}


def _experts_module(layer: nn.Module, router: nn.Module) -> nn.Module:
    inside = [module for part in ffn_parts(layer) for module in part.modules() if module is not router]
    stacked = [module for module in inside if _is_stacked(module)]
    if len(stacked) != 1:
        raise TargetError("its experts are not stacked in one module.", field="model", value=type(layer).__name__)
    return stacked[0]


def _is_stacked(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    count = getattr(module, "num_experts", None)
    name = type(module).__name__
    return "Experts" in name and bool(own) and all(p.ndim >= 2 and p.shape[0] == count for p in own)


def _nbytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters(recurse=False))


def _one_token(model: nn.Module, modules: Mapping[int, Any]) -> int:
    """Bytes of the K experts that a token needs in each layer."""
    top_k = {layer: getattr(router, "top_k", 1) for layer, router in find_routers(model)}
    return sum(
        _nbytes(module) * min(top_k[layer], module.num_experts) // module.num_experts
        for layer, module in modules.items()
    )


def _kind(module: nn.Module) -> tuple[Any, ...]:
    return tuple((name, p.shape[1:], p.dtype) for name, p in module.named_parameters(recurse=False))


class _Cache:
    """Device memory for S experts of one kind: a stack [S, ...] of each parameter, and the experts in its slots."""

    def __init__(self, modules: Sequence[nn.Module], device: torch.device, budget: int, traffic: Traffic):
        first = dict(modules[0].named_parameters(recurse=False))
        experts = sum(next(module.parameters(recurse=False)).shape[0] for module in modules)
        self._expert_bytes = _nbytes(modules[0]) // next(iter(first.values())).shape[0]
        self.slots = slots = min(experts, budget // self._expert_bytes)
        self.stacks = {
            name: nn.Parameter(torch.empty(slots, *p.shape[1:], dtype=p.dtype, device=device), requires_grad=False)
            for name, p in first.items()
        }
        self._traffic = traffic
        self._slots: OrderedDict[tuple[int, int], int] = OrderedDict()  # the least recently used first
        self._free = list(range(slots))
        traffic.held_bytes += slots * self._expert_bytes

    def bring(self, module: nn.Module, experts: Sequence[int]) -> list[int]:
        """The slots of these experts of a module, which are copied there if they are missing."""
        wanted = [(id(module), expert) for expert in experts]
        there = [key for key in wanted if key in self._slots]
        for key in there:  # first, so that none of them is replaced
            self._slots.move_to_end(key)
        self._traffic.hits += len(there)
        return [self._slots[key] if key in self._slots else self._load(module, key) for key in wanted]

    def _load(self, module: nn.Module, key: tuple[int, int]) -> int:
        slot = self._free.pop() if self._free else self._slots.popitem(last=False)[1]
        for name, stack in self.stacks.items():
            stack[slot].copy_(getattr(module, name)[key[1]])
        self._slots[key] = slot
        self._traffic.moved_bytes += self._expert_bytes
        self._traffic.misses += 1
        return slot


def _forward(
    module: Any, original: Any, cache: _Cache, x: torch.Tensor, chosen: torch.Tensor, gates: torch.Tensor
) -> torch.Tensor:
    """[T, D], [T, K], [T, K] -> [T, D], by the module's own forward on the experts' places on the device."""
    experts = chosen.unique().tolist()
    slots = cache.bring(module, experts)
    if _is_eager(module):
        places = dict(zip(experts, slots, strict=True))
        with _in_place_of(module, {name: _ByExpert(stack, places) for name, stack in cache.stacks.items()}):
            return original(x, chosen, gates)
    slot_of = torch.zeros(module.num_experts, dtype=chosen.dtype)
    slot_of[experts] = torch.tensor(slots, dtype=chosen.dtype)
    with _in_place_of(module, {**cache.stacks, "num_experts": cache.slots}):
        return original(x, slot_of.to(chosen.device)[chosen], gates)


def _is_eager(module: Any) -> bool:
    return getattr(module.config, "_experts_implementation", None) not in ALL_EXPERTS_FUNCTIONS


class _ByExpert:
    """A stack indexed by expert. A loop over experts adds up in their order; by slot, rounding would differ."""

    def __init__(self, stack: torch.Tensor, places: dict[int, int]):
        self._stack, self._places = stack, places

    def __getitem__(self, expert: Any) -> torch.Tensor:
        return self._stack[self._places[int(expert)]]


@contextmanager
def _in_place_of(module: nn.Module, values: dict[str, Any]) -> Iterator[None]:
    """Within, these attributes and parameters of the module are replaced."""
    parameters = {name: module._parameters.pop(name) for name in values if name in module._parameters}
    plain = {name: vars(module)[name] for name in values if name in vars(module)}
    vars(module).update(values)
    try:
        yield
    finally:
        for name in values:
            del vars(module)[name]
        vars(module).update(plain)
        module._parameters.update(parameters)
