"""Routers that may choose only some of their experts: to force one, or to see what is lost without it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn

from smolmoe.errors import RequestError
from smolmoe.moe.gating import RouterOutput, gate_spec, route
from smolmoe.moe.routing import find_routers

AVAILABLE = "smolmoe_available"


@contextmanager
def only_experts(model: nn.Module, available: Mapping[int, Sequence[int]]) -> Iterator[None]:
    """Within, the routers of these layers choose as if they had no other experts; in evaluation and in training.

    The others' logits count as -inf. Where fewer than K experts are available the rest of the K gets gate 0, so a
    single expert under renormalised gates is the whole FFN. The clean logits are still what is returned and captured.

    Args:
        available: layer index -> experts that may be chosen; layers left out are as they were.

    Raises:
        RequestError: a layer without router, an expert that is not there, none at all, or routers restricted already.
        TargetError: a router whose class is not known.
    """
    routers: dict[int, Any] = dict(find_routers(model))
    masks = {layer: _mask(routers, layer, experts) for layer, experts in available.items()}
    attached: list[Any] = []
    try:
        for layer, mask in masks.items():
            attached.append(routers[layer])
            _attach(routers[layer], mask)
        yield
    finally:
        for router in attached:
            _detach(router)


@contextmanager
def without_experts(model: nn.Module, removed: Mapping[int, Sequence[int]]) -> Iterator[None]:
    """Within, the routers of these layers choose as if these experts were not there. See `only_experts`."""
    counts = {layer: gate_spec(router).experts for layer, router in find_routers(model)}
    rest = {
        layer: [expert for expert in range(counts.get(layer, 0)) if expert not in experts]
        for layer, experts in removed.items()
    }
    with only_experts(model, rest):
        yield


def _mask(routers: Mapping[int, Any], layer: int, experts: Sequence[int]) -> torch.Tensor:
    """[E] bool."""
    if layer not in routers:
        raise RequestError(
            f"has no router; layers {', '.join(map(str, routers)) or 'none'} have.", field="layer", value=layer
        )
    router = routers[layer]
    if hasattr(router, AVAILABLE):
        raise RequestError("its router is restricted already.", field="layer", value=layer)
    spec = gate_spec(router)
    wrong = [expert for expert in experts if not 0 <= expert < spec.experts]
    if wrong or not experts:
        raise RequestError(
            f"layer {layer} has experts 0 to {spec.experts - 1}, and one at least must be left.",
            field="experts",
            value=wrong or list(experts),
        )
    mask = torch.zeros(spec.experts, dtype=torch.bool, device=router.weight.device)
    mask[list(experts)] = True
    return mask


def _attach(router: Any, mask: torch.Tensor) -> None:
    setattr(router, AVAILABLE, mask)
    if not hasattr(router, "smolmoe_gating"):  # a controlled router looks for the mask itself
        router.forward = MethodType(_restricted_forward, router)


def _detach(router: Any) -> None:
    delattr(router, AVAILABLE)
    if not hasattr(router, "smolmoe_gating"):
        del router.forward


def _restricted_forward(router: Any, hidden_states: torch.Tensor) -> RouterOutput:
    bias = getattr(router, "e_score_correction_bias", None)
    available = getattr(router, AVAILABLE)
    return route(hidden_states, router.weight, bias, gate_spec(router), available=available)
