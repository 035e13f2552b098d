"""Routers that may choose only some of their experts: to force one, or to measure the effect of removing it.

For routers of known classes `route` gets the available experts. Any other router runs its own `forward`, in
which the products that give logits, and the inputs of top-k, are masked: it chooses by its own rules among
the remaining experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from smolmoe.errors import RequestError
from smolmoe.moe.gating import gate_spec, is_known, route, router_weight, selection_bias
from smolmoe.moe.routing import RoutingCapture, find_routers

AVAILABLE = "smolmoe_available"
_LOWEST = -1e9  # of masked logits: finite, since some routers subtract them from each other
_PRODUCTS = (F.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.Tensor.mm)
_HIGHEST = (torch.topk, torch.Tensor.topk)


@contextmanager
def only_experts(model: nn.Module, available: Mapping[int, Sequence[int]]) -> Iterator[None]:
    """Within, the routers of these layers choose as if they had no other experts; in evaluation and in training.

    The others' logits count as -inf. Where fewer than K experts are available the rest of the K gets gate 0, so a
    single expert under renormalised gates is the whole FFN. Routers whose computation is known still return the clean
    logits, which are captured.

    Args:
        available: layer index -> experts that may be chosen; layers left out are as they were.

    Raises:
        RequestError: a layer without router, an expert that is not there, none at all, or routers restricted already.
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
    counts = {layer: _experts(router) for layer, router in find_routers(model)}
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
            f"has no router; layers with routers: {', '.join(map(str, routers)) or 'none'}.", field="layer", value=layer
        )
    router = routers[layer]
    if hasattr(router, AVAILABLE):
        raise RequestError("its router is already restricted.", field="layer", value=layer)
    count = _experts(router)
    wrong = [expert for expert in experts if not 0 <= expert < count]
    if wrong or not experts:
        raise RequestError(
            f"layer {layer} has experts 0 to {count - 1}, and at least one must remain.",
            field="experts",
            value=wrong or list(experts),
        )
    mask = torch.zeros(count, dtype=torch.bool, device=next(router.parameters()).device)
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


def _restricted_forward(router: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    available = getattr(router, AVAILABLE)
    if not is_known(router):
        with _Masked(available, _columns(router)) as masked:
            output = type(router).forward(router, hidden_states, *args, **kwargs)
        return masked.without_excluded(output)
    bias = args[0] if args else selection_bias(router)  # LFM2's block passes it
    return route(hidden_states, router_weight(router), bias, gate_spec(router), available=available)


def why_not_restricted(model: nn.Module, capture: RoutingCapture, inputs: torch.Tensor) -> str | None:
    """Why the routers of a model cannot be restricted, None where they can: tried on a few tokens.

    Args:
        capture: of the model.
        inputs: token ids [B, S].
    """
    capture.clear()
    try:
        with torch.inference_mode(), only_experts(model, dict.fromkeys(capture.layers, (0,))), capture:
            model(input_ids=inputs, use_cache=False)
        for (layer, router), routing in zip(find_routers(model), map(capture.routing, capture.layers), strict=True):
            used = routing.indices[routing.weights != 0]
            if not len(used) or bool((used != 0).any()) or not bool(routing.weights.isfinite().all()):
                return f"the {type(router).__name__} of layer {layer}, restricted to one expert, still chooses others"
        return None
    finally:
        capture.clear()


def _experts(router: Any) -> int:
    """E, whatever the class calls it; experts that compute nothing (LongCat, Zaya) are some."""
    if is_known(router):
        return gate_spec(router).experts
    shared = getattr(router, "n_shared_experts", None) or 0  # scored along with the others (Inkling)
    return max(getattr(router, "num_experts", None) or 1, _columns(router) - shared)


def _columns(router: Any) -> int:
    """How many logits a router of an unknown class has: the rows of its matrix, of several the one next above E."""
    named = getattr(router, "num_experts", None) or 1
    return min(p.shape[0] for p in router.parameters() if p.ndim == 2 and p.shape[0] >= named)


class _Masked(TorchFunctionMode):
    """Within, a router's logits are the lowest numbers for experts that are not available, and its top-k leaves them.

    Args:
        available: [E] bool.
        columns: of its logits; those behind E are of shared experts.
    """

    def __init__(self, available: torch.Tensor, columns: int):
        super().__init__()
        self._available = available
        self._columns = {columns, len(available)}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _HIGHEST and (left := self._left(args[0])) is not None:
            found = function(args[0].masked_fill(~left, float("-inf")), *args[1:], **kwargs)
            return torch.return_types.topk((args[0].gather(-1, found.indices), found.indices))
        result = function(*args, **kwargs)
        if function in _PRODUCTS and (left := self._left(result)) is not None:
            return result.masked_fill(~left, max(_LOWEST, torch.finfo(result.dtype).min / 2))
        return result

    def without_excluded(self, output: Any) -> Any:
        """A router's output with gates of 0 for what could not but be chosen, where fewer than K are left."""
        parts = output if isinstance(output, tuple) else (output,)
        indices = next((p for p in parts if isinstance(p, torch.Tensor) and not p.is_floating_point()), None)
        cleaned = tuple(self._cleaned(part, indices) for part in parts)
        return cleaned if isinstance(output, tuple) else cleaned[0]

    def _cleaned(self, part: Any, indices: torch.Tensor | None) -> Any:
        if not isinstance(part, torch.Tensor) or not part.is_floating_point():
            return part
        if indices is not None and part.shape == indices.shape:
            return part * self._available[indices]
        left = self._left(part)
        # Without indices, routers return scores of all experts, zero for those not chosen, or logits alone.
        if left is None or indices is not None or bool((part < 0).any()):
            return part
        return part * left

    def _left(self, of: torch.Tensor) -> torch.Tensor | None:
        """[columns] bool; None where the columns are not experts."""
        if not of.is_floating_point() or of.shape[-1] not in self._columns:
            return None
        return F.pad(self._available, (0, of.shape[-1] - len(self._available)), value=True)
