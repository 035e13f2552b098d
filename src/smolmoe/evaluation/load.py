"""Which experts the tokens of each domain go to."""

from __future__ import annotations

from typing import Any

from smolmoe.evaluation.held_out import HeldOut


def domain_load(model: Any, held_out: HeldOut, tokens: int) -> dict[str, list[list[float]]]:
    """For each domain, and for "all" of them together, each MoE layer's share of choices by expert [L, E].

    Perfect balance is 1/E everywhere. "all" weighs the domains alike.

    Args:
        model: an MoE in memory.
        tokens: of each domain, at most (and one window more).
    """
    import torch

    from smolmoe.moe.routing import RoutingCapture, expert_load

    loads: dict[str, torch.Tensor] = {}
    with RoutingCapture(model) as capture, torch.inference_mode():
        for domain in sorted(set(held_out.domains)):
            for window in _windows(held_out, domain, tokens):
                model(input_ids=torch.tensor([window], device=model.device), use_cache=False)
            loads[domain] = torch.stack([expert_load(capture.routing(layer)) for layer in capture.layers])
            capture.clear()
    loads["all"] = torch.stack(list(loads.values())).mean(dim=0)
    return {domain: [[round(share, 4) for share in layer] for layer in load.tolist()] for domain, load in loads.items()}


def _windows(held_out: HeldOut, domain: str, tokens: int) -> list[tuple[int, ...]]:
    chosen: list[tuple[int, ...]] = []
    for window, owner in zip(held_out.windows, held_out.owners, strict=True):
        if held_out.domains[owner] == domain and sum(map(len, chosen)) < tokens:
            chosen.append(window)
    return chosen
