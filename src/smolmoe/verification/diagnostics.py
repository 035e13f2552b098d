"""The measurements of the doctor: gradients, loads, copies, ties, causality, padding."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from smolmoe.core.devices import doubled
from smolmoe.moe.routing import Routing, RoutingCapture, dead_experts, expert_load, find_routers, tied
from smolmoe.moe.structure import expert_parameters, find_layers
from smolmoe.verification.logits import before_first_close_call, largest, next_token_losses
from smolmoe.verification.sample import Side, padded, plain, real_positions

# A few tokens show whether the auxiliary loss is in the graph.
AUX_TOKENS = 32


@dataclass(frozen=True)
class LayerVitals:
    """One MoE layer.

    Attributes:
        experts, top_k: E and K.
        router_gradient, expert_gradient: gradient norms of the language-model loss with respect to their weights.
        aux_gradient: the same of the auxiliary loss for the router's weights, None without such a loss.
        load: [E], share of each expert in all choices.
        unreached: experts that no token of the sample reached.
        distinct: number of experts that differ in any bit, None if they could not be found.
        silent: routed experts output zero (their down projections are zero).
        constant: every token gets the same scores for all experts.
        tied: share of tokens decided by the order of equal scores.
        fixed_gates: every gate is the same number for all tokens.
    """

    layer: int
    experts: int
    top_k: int
    router_gradient: float
    expert_gradient: float
    aux_gradient: float | None
    load: tuple[float, ...]
    unreached: tuple[int, ...]
    distinct: int | None
    silent: bool
    constant: bool
    tied: float
    fixed_gates: bool


@dataclass(frozen=True)
class Vitals:
    """The whole model, on `tokens` tokens.

    Attributes:
        not_finite: what is NaN or infinite: parameter names, "logits", "gradients".
        max_logit: largest |logit|.
        has_aux_loss: the class returns an auxiliary loss with router logits.
        aux_in_config: the config requests router logits, so that the loss is part of training.
        causal: largest change of an earlier logit when later tokens change, without close calls of routers.
        padding: largest change of a real token's logit in a padded batch, without close calls.
    """

    layers: tuple[LayerVitals, ...]
    tokens: int
    not_finite: tuple[str, ...]
    max_logit: float
    has_aux_loss: bool
    aux_in_config: bool
    causal: float
    padding: float


def take_vitals(model: Any, sequences: Sequence[torch.Tensor], device: str) -> Vitals:
    """Measure an MoE, loaded completely in fp32, on token sequences [S_i]."""
    bad = [name for name, parameter in model.named_parameters() if not bool(torch.isfinite(parameter).all())]
    routers = find_routers(model)
    routings, largest_logit, losses_finite = _language_model_pass(model, sequences, device)
    few = [sequence[:AUX_TOKENS] for sequence in sequences[:2]]
    aux = _aux_gradients(model, padded(model, few, "right", device), [router for _, router in routers])
    gradients_finite = all(
        bool(torch.isfinite(parameter.grad).all()) for parameter in model.parameters() if parameter.grad is not None
    )
    bad += [what for what, fine in (("logits", losses_finite), ("gradients", gradients_finite)) if not fine]
    _, layers = find_layers(model)
    per_layer = tuple(
        _layer_vitals(index, layers[index], router, routings[index], aux[place] if aux else None)
        for place, (index, router) in enumerate(routers)
    )
    model.zero_grad()
    return Vitals(
        layers=per_layer,
        tokens=sum(len(sequence) for sequence in sequences),
        not_finite=tuple(bad),
        max_logit=largest_logit,
        has_aux_loss=aux is not None,
        aux_in_config=bool(getattr(model.config, "output_router_logits", False)),
        causal=_later_on_earlier(model, sequences[0], device),
        padding=_pad_leakage(model, sequences, device),
    )


def _language_model_pass(
    model: Any, sequences: Sequence[torch.Tensor], device: str
) -> tuple[dict[int, Routing], float, bool]:
    """Gradients of the mean next-token loss are left on the routers and experts."""
    # One batch: the cost of a backward pass depends on the weights, not on the tokens.
    batch = padded(model, sequences, "right", device)
    with _only_moe_gradients(model), RoutingCapture(model) as capture:
        capture.keep = batch["attention_mask"].flatten().bool()
        logits = model(**batch, use_cache=False, output_router_logits=False).logits
        real = [logits[row, : len(sequence)] for row, sequence in enumerate(sequences)]
        losses = [next_token_losses(*pair) for pair in zip(real, sequences, strict=True)]
        torch.cat(losses).mean().backward()
    finite = all(bool(torch.isfinite(part).all()) for part in real)
    top = max(part.detach().abs().max().item() for part in real)
    return {layer: capture.routing(layer) for layer in capture.layers}, top, finite


@contextmanager
def _only_moe_gradients(model: Any) -> Iterator[None]:
    """Gradients of routers and experts only: the others are not used, and would double the memory."""
    _, layers = find_layers(model)
    wanted: set[int] = set()
    for index, router in find_routers(model):
        wanted |= {id(parameter) for parameter in router.parameters()}
        wanted |= {id(tensor) for tensor in _experts(layers[index], router).values()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in wanted)
    try:
        yield
    finally:
        model.requires_grad_(True)


def _aux_gradients(model: Any, batch: dict[str, torch.Tensor], routers: list[nn.Module]) -> list[float] | None:
    """Per router, the gradient norm of the auxiliary loss; None if the class returns no such loss."""
    out = model(**batch, use_cache=False, output_router_logits=True)
    aux = getattr(out, "aux_loss", None)
    if not isinstance(aux, torch.Tensor):
        return None
    weights = [list(router.parameters()) for router in routers]
    flat = [parameter for group in weights for parameter in group]
    if not aux.requires_grad:
        return [0.0] * len(routers)
    gradients = dict(zip(map(id, flat), torch.autograd.grad(aux, flat, allow_unused=True), strict=True))
    return [_norm([gradients[id(parameter)] for parameter in group]) for group in weights]


def _layer_vitals(index: int, layer: nn.Module, router: nn.Module, routing: Routing, aux: float | None) -> LayerVitals:
    experts = _experts(layer, router, routing.experts)
    matrices = [tensor for tensor in experts.values() if tensor.ndim >= 3]
    gates = routing.weights.detach()
    return LayerVitals(
        layer=index,
        experts=routing.experts,
        top_k=routing.top_k,
        router_gradient=_norm([parameter.grad for parameter in router.parameters()]),
        expert_gradient=_norm([tensor.grad for tensor in experts.values()]),
        aux_gradient=aux,
        load=tuple(round(share, 6) for share in expert_load(routing).tolist()),
        unreached=dead_experts(routing),
        distinct=_distinct(list(experts.values()), routing.experts) if experts else None,
        silent=any(not bool(tensor.any()) for tensor in matrices),
        constant=bool((routing.scores == routing.scores[:, :1]).all()),
        tied=tied(routing).float().mean().item(),
        fixed_gates=gates.numel() > 1 and bool((gates == gates.flatten()[0]).all()),
    )


def _experts(layer: nn.Module, router: nn.Module, experts: int | None = None) -> dict[str, torch.Tensor]:
    return expert_parameters(layer, router, experts if experts is not None else _number_of_experts(router))


def _number_of_experts(router: nn.Module) -> int:
    return max(parameter.shape[0] for parameter in router.parameters() if parameter.ndim == 2)


def _distinct(stacks: list[torch.Tensor], experts: int) -> int:
    digests = set()
    for expert in range(experts):
        digest = hashlib.sha256()
        for stack in stacks:
            digest.update(stack[expert].detach().cpu().contiguous().numpy().tobytes())
        digests.add(digest.digest())
    return len(digests)


def _norm(tensors: Sequence[torch.Tensor | None]) -> float:
    return sum(doubled(tensor).square().sum().item() for tensor in tensors if tensor is not None) ** 0.5


@torch.no_grad()
def _later_on_earlier(model: Any, sequence: torch.Tensor, device: str) -> float:
    kept = len(sequence) * 2 // 3
    other = sequence.clone()
    other[kept:] = sequence[kept:].flip(0)
    changed = other[kept:] == sequence[kept:]
    vocabulary = model.config.get_text_config().vocab_size
    other[kept:][changed] = (other[kept:][changed] + 1) % vocabulary
    runs = [_logits_and_routing(model, plain(ids, device), slice(0, kept)) for ids in (sequence, other)]
    return _difference(runs[0], runs[1])


@torch.no_grad()
def _pad_leakage(model: Any, sequences: Sequence[torch.Tensor], device: str) -> float:
    short, long = sequences[0][: len(sequences[-1]) // 2], sequences[-1]
    alone = _logits_and_routing(model, plain(short, device), slice(0, len(short)))
    sides: tuple[Side, ...] = ("left", "right")
    differences = []
    for side in sides:
        # Padded with an ordinary token: masked tokens must not matter, whatever they are.
        batch = padded(model, [short, long], side, device, pad=int(long[0]))
        place = real_positions(len(short), len(long), side)
        differences.append(_difference(alone, _logits_and_routing(model, batch, place)))
    return max(differences)


def _logits_and_routing(
    model: Any, batch: dict[str, torch.Tensor], tokens: slice
) -> tuple[torch.Tensor, list[Routing]]:
    """Logits [t, V] and every layer's routing of these of the batch's B * S tokens."""
    with RoutingCapture(model) as capture:
        logits = model(**batch, use_cache=False).logits
    return logits.flatten(0, 1)[tokens], [capture.routing(layer).at(tokens) for layer in capture.layers]


def _difference(a: tuple[torch.Tensor, list[Routing]], b: tuple[torch.Tensor, list[Routing]]) -> float:
    sure = before_first_close_call(a[1], b[1]).to(a[0].device)
    return largest((a[0] - b[0])[sure])
