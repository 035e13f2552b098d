"""The routers of any MoE of transformers: finding them, capturing what they decide, counting it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import nn

from smolmoe.errors import SourceError
from smolmoe.moe import reference
from smolmoe.moe.gating import gate_spec, is_known, selection_bias
from smolmoe.moe.structure import find_layers

# Where no recorder says where a router's logits are: at the end that does not hold the indices.
UNRECORDED = -1
_ROUTER_NAME = re.compile(r"router$|topk_?gat(e|ing)$", re.IGNORECASE)


@dataclass(frozen=True)
class Routing:
    """What one layer's router decided for T tokens.

    Attributes:
        logits: [T, E].
        weights: [T, K], the gates of the chosen experts.
        indices: [T, K], the chosen experts, in no particular order.
        scores: [T, E], what the K highest were chosen by: the logits, or scores with a selection bias added.
    """

    logits: torch.Tensor
    weights: torch.Tensor
    indices: torch.Tensor
    scores: torch.Tensor

    @property
    def experts(self) -> int:
        return self.logits.shape[-1]

    @property
    def top_k(self) -> int:
        return self.indices.shape[-1]

    def at(self, tokens: slice | torch.Tensor) -> Routing:
        """The same for some of the tokens."""
        return Routing(self.logits[tokens], self.weights[tokens], self.indices[tokens], self.scores[tokens])

    def chosen(self) -> torch.Tensor:
        """[T, E] bool: the experts of each token as a set."""
        return torch.zeros_like(self.logits, dtype=torch.bool).scatter_(1, self.indices, True)


@dataclass(frozen=True)
class _Found:
    layer: int
    module: nn.Module
    logits_at: int  # position in the router's output
    block: nn.Module  # that it is in, with its experts

    @property
    def experts(self) -> nn.Module | None:
        return getattr(self.block, "experts", None)

    @property
    def bias(self) -> torch.Tensor | None:
        return selection_bias(self.module, self.block)


def find_routers(model: nn.Module) -> list[tuple[int, nn.Module]]:
    """(layer index, router) of every MoE layer, in order; empty for a dense model.

    A router is what the model's class records as `router_logits`; where a class records none, what is called one.
    """
    return [(found.layer, found.module) for found in _find(model)]


def selection_biases(model: nn.Module) -> dict[int, torch.Tensor | None]:
    """Layer index -> [E], a view of the bias that affects only the choice of experts; None without a bias."""
    return {found.layer: found.bias for found in _find(model)}


def unread_routers(model: nn.Module) -> dict[int, str]:
    """Layer index -> class of its router, of those that `find_routers` leaves out: no decisions of theirs are recorded.

    DeepSeek-V4's first layers are such: they choose by a table of tokens.
    """
    path, _ = find_layers(model)
    read = {layer for layer, _ in find_routers(model)}
    named = [(name.removeprefix(f"{path}."), type(m).__name__) for name, m in model.named_modules() if name != path]
    routers = [(name.split(".")[0], kind) for name, kind in named if _ROUTER_NAME.search(kind)]
    return {int(layer): kind for layer, kind in routers if layer.isdigit() and int(layer) not in read}


class RoutingCapture:
    """Records what every router decides while it is active.

        with RoutingCapture(model) as capture:
            model(input_ids)
        capture.routing(0).indices  # [T, K]

    The recorded tensors keep their graph where gradients are on.

    Args:
        model: any MoE of transformers whose routers return logits, gates and indices.

    Attributes:
        layers: indices of the MoE layers.
        keep: [T] bool of what to record of the following calls, or None for all: a flat attention mask drops padding.

    Raises:
        SourceError: the model has no router, or one that does not return logits, gates and indices.
    """

    def __init__(self, model: nn.Module):
        self._found = _find(model)
        if not self._found:
            raise _no_router(model)
        self.layers = [found.layer for found in self._found]
        self.keep: torch.Tensor | None = None
        self._calls: dict[int, list[Routing]] = {layer: [] for layer in self.layers}
        self.pending: dict[int, torch.Tensor] = {}  # logits of routers that leave the choice to their block
        self._handles: list[Any] = []

    def __enter__(self) -> RoutingCapture:
        for found in self._found:
            self._handles.append(found.module.register_forward_hook(_recorder(self, found)))
            if isinstance(found.experts, nn.Module):
                hook = _experts_recorder(self, found)
                self._handles.append(found.experts.register_forward_pre_hook(hook, with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def calls(self, layer: int) -> list[Routing]:
        """What the router of `layer` decided, call by call."""
        return self._calls[layer]

    def routing(self, layer: int) -> Routing:
        """The same, all calls one after the other."""
        calls = self._calls[layer]
        if not calls:
            module = next(found.module for found in self._found if found.layer == layer)
            raise _unreadable(module)
        return Routing(
            torch.cat([call.logits for call in calls]),
            torch.cat([call.weights for call in calls]),
            torch.cat([call.indices for call in calls]),
            torch.cat([call.scores for call in calls]),
        )

    def clear(self) -> None:
        """Forget what was recorded so far."""
        self.pending.clear()
        for calls in self._calls.values():
            calls.clear()

    def record(self, layer: int, routing: Routing) -> None:
        self._calls[layer].append(routing if self.keep is None else routing.at(self.keep))


def expert_load(routing: Routing) -> torch.Tensor:
    """[E]: the share of all choices that fell on each expert; 1/E each at perfect balance."""
    return reference.expert_load(routing.indices, routing.experts)


def dead_experts(routing: Routing) -> tuple[int, ...]:
    """The experts that no token reached."""
    return tuple(torch.nonzero(~routing.chosen().any(0)).flatten().tolist())


def incomplete_groups(routing: Routing, granularity: int) -> float:
    """The share of tokens whose experts are not whole groups, group of e = e // granularity (arXiv 2410.07524)."""
    per_group = routing.chosen().unflatten(1, (-1, granularity)).sum(-1)
    return ((per_group != 0) & (per_group != granularity)).any(1).float().mean().item()


def flipped(a: Routing, b: Routing) -> torch.Tensor:
    """[T] bool: tokens whose set of experts differs between two runs."""
    return (a.chosen() != b.chosen()).any(1)


def tied(routing: Routing) -> torch.Tensor:
    """[T] bool: tokens for which a chosen and an unchosen expert score exactly the same, so order decided."""
    chosen = routing.chosen()
    same = routing.scores.gather(1, routing.indices)[:, :, None] == routing.scores[:, None, :]  # [T, K, E]
    return (same & ~chosen[:, None, :]).any(2).any(1)


def margin(routing: Routing) -> torch.Tensor:
    """[T]: by how much the worst chosen expert's score exceeds the best unchosen one's; infinite where K = E."""
    chosen = routing.chosen()
    worst = routing.scores.masked_fill(~chosen, float("inf")).amin(1)
    best = routing.scores.masked_fill(chosen, float("-inf")).amax(1)
    return worst - best


def _find(model: nn.Module) -> list[_Found]:
    path, _ = find_layers(model)
    recorders = _recorders(model)
    found = {}
    for name, module in model.named_modules():
        at = _logits_position(recorders, name, module) if name.startswith(f"{path}.") else None
        if at is not None:
            layer = int(name.removeprefix(f"{path}.").split(".")[0])
            block = model.get_submodule(name.rpartition(".")[0])
            found[layer] = _Found(layer, module, at, block)
    return [found[layer] for layer in sorted(found)]


def _logits_position(recorders: list[Any], name: str, module: nn.Module) -> int | None:
    """Where in the module's output the router logits are, or None if it is no router."""
    for recorder in recorders:
        suffix, part = recorder.class_name, recorder.layer_name
        is_class = recorder.target_class is not None and isinstance(module, recorder.target_class)
        is_there = part is None or f".{part.strip('.')}." in f"{name}."
        if is_there and (is_class or (suffix is not None and name.endswith(suffix))):
            return int(recorder.index)
    is_called_one = not recorders and _ROUTER_NAME.search(type(module).__name__)
    return UNRECORDED if is_called_one else None


def _recorders(model: nn.Module) -> list[Any]:
    from transformers.utils.output_capturing import OutputRecorder

    found: list[Any] = []
    for module in model.modules():
        entry = (getattr(module, "_can_record_outputs", None) or {}).get("router_logits", [])
        recorders = entry if isinstance(entry, list) else [entry]
        found += [recorder for recorder in recorders if isinstance(recorder, OutputRecorder) and recorder not in found]
    return found


def _recorder(capture: RoutingCapture, found: _Found) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        routing = _as_routing(module, output, found)
        if isinstance(routing, Routing):
            capture.record(found.layer, routing)
        elif isinstance(found.experts, nn.Module):
            capture.pending[found.layer] = routing
        else:
            raise _unreadable(module)

    return hook


def _experts_recorder(capture: RoutingCapture, found: _Found) -> Any:
    """What the experts of a block are given, where its router returns logits alone."""

    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        logits = capture.pending.pop(found.layer, None)
        if logits is None:
            return
        given = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
        indices = next((t for t in given if not t.is_floating_point()), None)
        gates = [t for t in given if indices is not None and t is not indices and t.shape == indices.shape]
        if indices is None or not gates:
            raise _unreadable(found.module)
        scores = _selection_scores(found, logits)
        capture.record(found.layer, Routing(logits, gates[0].flatten(0, -2), indices.flatten(0, -2), scores))

    return hook


def _as_routing(router: Any, output: Any, found: _Found) -> Routing | torch.Tensor:
    """Routers agree on what they return but not on the order: indices are the integers, gates have their shape.

    Where there are no integers, scores of all experts are zero for those not chosen (Llama 4); without scores the
    logits alone are returned, and the router's block chooses.
    """
    logits_at, output = found.logits_at, output if isinstance(output, tuple) else (output,)
    if logits_at == UNRECORDED:
        logits_at = 0 if output[0].is_floating_point() else len(output) - 1
    logits = output[logits_at].reshape(-1, output[logits_at].shape[-1])
    rest = [t for at, t in enumerate(output) if at != logits_at and isinstance(t, torch.Tensor)]
    indices = [t for t in rest if not t.is_floating_point()]
    if not rest and len(output) == 1:
        return logits
    if not indices and len(rest) == 1 and rest[0].shape == output[logits_at].shape and hasattr(router, "top_k"):
        top = rest[0].reshape(logits.shape).topk(router.top_k, dim=-1)
        return Routing(logits, top.values, top.indices, _selection_scores(found, logits))
    gates = [t for t in rest if t.is_floating_point() and indices and t.shape == indices[0].shape]
    if len(indices) != 1 or not gates:
        raise _unreadable(router)
    return Routing(logits, gates[0].flatten(0, -2), indices[0].flatten(0, -2), _selection_scores(found, logits))


def _no_router(model: nn.Module) -> SourceError:
    kinds = {type(module).__name__ for module in model.modules() if _ROUTER_NAME.search(type(module).__name__)}
    if kinds:
        problem = "transformers records no decisions of its routers, so they cannot be read."
        return SourceError(problem, field="router", value=", ".join(sorted(kinds)))
    return SourceError(
        "the model has no router known to transformers; it is dense.",
        field="model",
        value=type(model).__name__,
        fix="Use an MoE.",
    )


def _unreadable(router: nn.Module) -> SourceError:
    return SourceError(
        "this router does not return logits, gates and indices, nor are gates and indices passed to its experts; "
        "its decisions cannot be read.",
        field="router",
        value=type(router).__name__,
    )


def _selection_scores(found: _Found, logits: torch.Tensor) -> torch.Tensor:
    bias = found.bias
    if bias is None:
        return logits.detach()  # scores rise with the logits, whatever the function
    is_softmax = is_known(found.module) and gate_spec(found.module).scoring == "softmax"
    scores = logits.detach().float()
    biased = (scores.softmax(-1) if is_softmax else scores.sigmoid()) + bias
    # An even bias changes no order. Chosen on the device, which `bool` would wait for in every layer.
    return torch.where((bias == bias[0]).all(), scores, biased)
