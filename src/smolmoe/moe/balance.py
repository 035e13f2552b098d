"""How evenly a router uses its experts, from counts or loads [L, E] of L layers; balancing by bias.

All are scale-invariant, so counts and shares give the same. Of a token's K choices at most one goes to each expert,
so with K > 1 a full collapse has load 1/K on K experts; the values at collapse below are for K = 1.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from smolmoe.moe.routing import Routing, selection_biases


def count_choices(indices: torch.Tensor, weights: torch.Tensor, experts: int) -> torch.Tensor:
    """Chosen experts and gates [..., T, K] to [..., E] int64: how many choices went to each expert, layer by layer.

    Those of weight 0 (dropped, or past top-p) are not counted.
    """
    # Not `bincount`, which waits for the device to learn the size of its output.
    counts = torch.zeros(*indices.shape[:-2], experts, dtype=torch.int64, device=indices.device)
    return counts.scatter_add_(-1, indices.flatten(-2), (weights.detach() != 0).flatten(-2).long())


def choice_counts(routing: Routing) -> torch.Tensor:
    """[E] int64: the same of one layer's routing."""
    return count_choices(routing.indices, routing.weights, routing.experts)


def domain_counts(routing: Routing, domain_ids: torch.Tensor, domains: int) -> torch.Tensor:
    """[domains, E] int64: the choices of one layer's routing, by the domain of each token [T]."""
    places = domain_ids[:, None] * routing.experts + routing.indices
    counts = torch.zeros(domains * routing.experts, dtype=torch.int64, device=places.device)
    counts.scatter_add_(0, places.flatten(), (routing.weights.detach() != 0).flatten().long())
    return counts.view(domains, routing.experts)


def load_entropy(counts: torch.Tensor) -> torch.Tensor:
    """B: mean over layers of H(load) / ln E, a scalar: 1 at perfect balance, 0 at collapse (ln K / ln E for K > 1)."""
    experts = counts.shape[-1]
    entropy = torch.special.entr(_load(counts)).sum(-1).mean()
    return entropy / math.log(experts) if experts > 1 else torch.ones_like(entropy)


def load_variation(counts: torch.Tensor) -> torch.Tensor:
    """Mean over layers of std(load) / mean(load): 0 at perfect balance, sqrt(E - 1) at collapse."""
    load = _load(counts)
    return (load.std(-1, correction=0) / load.mean(-1).clamp_min(1e-30)).mean()


def max_violation(counts: torch.Tensor) -> torch.Tensor:
    """MaxVio: mean over layers of max(load) / mean(load) - 1 (arXiv 2408.15664): 0 when balanced, E - 1 at collapse."""
    load = _load(counts)
    return (load.amax(-1) / load.mean(-1).clamp_min(1e-30) - 1).mean()


def balance_statistics(counts: torch.Tensor) -> dict[str, float]:
    """All of the above and the number of experts in each state, over all layers, with one device sync.

    Args:
        counts: [L, E] (or [E] of one layer), counts or loads.

    Returns:
        `balance`, `variation`, `max_violation`; `active_experts` (reached by a token) and `dead_experts` of L * E.
    """
    dead = (counts == 0).sum()
    values = {
        "balance": load_entropy(counts),
        "variation": load_variation(counts),
        "max_violation": max_violation(counts),
        "active_experts": counts.numel() - dead,
        "dead_experts": dead,
    }
    numbers = torch.stack([value.float() for value in values.values()]).tolist()
    return dict(zip(values, numbers, strict=True))


def routing_statistics(counts: torch.Tensor, reserved: Collection[int] = ()) -> dict[str, Any]:
    """`balance_statistics` of choices [L, E], with each layer's balance and the dead experts [layer, expert].

    Reserved experts are excluded: they are idle on purpose.
    """
    open_to_all = [expert for expert in range(counts.shape[1]) if expert not in reserved]
    counts = counts.cpu()[:, open_to_all]
    dead = torch.nonzero(counts == 0).tolist()
    return {
        **balance_statistics(counts),
        "balance_by_layer": [round(load_entropy(layer).item(), 4) for layer in counts],
        "dead": [[layer, open_to_all[expert]] for layer, expert in dead],
    }


def _load(counts: torch.Tensor) -> torch.Tensor:
    total = counts.sum(-1, keepdim=True)
    return counts.float() / torch.where(total == 0, 1, total)


@torch.no_grad()
def update_selection_bias(
    bias: torch.Tensor, load: torch.Tensor, rate: float, mean: torch.Tensor | None = None
) -> None:
    """bias += rate * sign(mean(load) - load), in place: balancing without a loss (arXiv 2408.15664).

    The bias affects only the choice, so no gradient is disturbed. Unchanged at perfect balance.

    Args:
        bias: [E], a router's selection bias.
        load: [E], the load of the optimiser step, over all ranks.
        rate: the step, .001 in the paper, on scores in [0, 1].
        mean: [E], the reference for each load if it is not the mean of all: the mean of the experts with one name.
    """
    load = load.to(bias)
    bias.add_(torch.sign((load.mean() if mean is None else mean.to(bias)) - load), alpha=rate)


def has_selection_bias(model: nn.Module) -> bool:
    """Whether every router of the model has the bias that `update_selection_bias` moves."""
    biases = selection_biases(model)
    return bool(biases) and all(bias is not None for bias in biases.values())
