"""Routers that the language-model loss teaches nothing: one rule, for the doctor and for a training about to begin."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from smolmoe.moe.gating import GateSpec, gate_spec, router_weight
from smolmoe.moe.routing import find_routers, selection_biases
from smolmoe.moe.structure import expert_parameters, find_layers
from smolmoe.recipe.train import ObjectiveRecipe, RoutingRecipe
from smolmoe.verification.findings import Finding, finding

logger = logging.getLogger(__name__)


def constant_router(experts: int, top_k: int, constant: bool, copies: bool) -> str | None:
    """The finding for a router that gives all experts the same score; None if it does not.

    Args:
        constant: every token gets the same scores for all experts.
        copies: the experts are copies of each other, or groups of shards are, and their gates have a constant sum: the
            gradient of the router does not distinguish them.
    """
    if not constant or experts == 1:
        return None
    if top_k == experts:
        return "same-experts" if copies else None
    return "zero-router" if copies else "tied-router"


def fixed_gates(top_k: int, fixed: bool, balanced: bool) -> str | None:
    """The finding for a single gate that is always the same number; None if it is not.

    Args:
        balanced: another loss than the language model's moves the router.
    """
    if top_k > 1 or not fixed:
        return None
    return "top-1-balanced" if balanced else "top-1"


def findings_at_start(
    model: Any, objective: ObjectiveRecipe, routing: RoutingRecipe, *, guided: bool = False, granularity: int = 1
) -> tuple[Finding, ...]:
    """The findings on routers that the doctor would report on a model before its training, from config and weights.

    Args:
        model: loaded, or on meta (then nothing is reported about weights).
        objective, routing: of the training, whose terms and draws may move a router after all.
        guided: experts have domains that their routers are shown: no other gradient is needed.
        granularity: G experts that share a router row are shards of one FFN.
    """
    _, layers = find_layers(model)
    biases = selection_biases(model)
    balanced = bool(objective.balancing)
    drawn = bool(routing.noise or routing.sample or routing.expert_dropout)
    by_code: dict[str, list[tuple[int, GateSpec]]] = {}
    for index, router in find_routers(model):
        spec = gate_spec(router)
        codes = [None if guided else fixed_gates(spec.top_k, spec.fixed_gates, balanced)]
        if not (guided or balanced or drawn) and _is_constant(router, biases[index]):
            stacks = expert_parameters(layers[index], router, spec.experts)
            copies = spec.constant_sum and _are_copies(stacks, granularity)
            codes.append(constant_router(spec.experts, spec.top_k, True, copies))
        for code in codes:
            if code is not None:
                by_code.setdefault(code, []).append((index, spec))
    return tuple(
        finding(code, tuple(index for index, _ in found), experts=found[0][1].experts, top_k=found[0][1].top_k)
        for code, found in by_code.items()
    )


def tell(findings: Sequence[Finding]) -> None:
    """Log them: errors and warnings as warnings, the rest as information."""
    for found in findings:
        logger.log(logging.INFO if found.severity == "info" else logging.WARNING, "%s", found)


def _is_constant(router: Any, bias: torch.Tensor | None) -> bool:
    weight = router_weight(router)
    if weight.is_meta:
        return False
    rows = [weight] if bias is None else [weight, bias[:, None]]
    return all(bool((tensor == tensor[:1]).all()) for tensor in rows)


def _are_copies(stacks: Mapping[str, torch.Tensor], granularity: int) -> bool:
    """Whether each expert equals the expert `granularity` places before it."""
    return bool(stacks) and all(torch.equal(stack[granularity:], stack[:-granularity]) for stack in stacks.values())
