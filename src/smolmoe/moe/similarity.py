"""How much the weights of a layer's experts resemble each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from smolmoe.moe.gating import gate_spec
from smolmoe.moe.routing import find_routers
from smolmoe.moe.structure import expert_parameters, find_layers


def weight_cosine(layer: nn.Module, router: nn.Module, experts: int) -> torch.Tensor:
    """[E, E]: cosine of all weights of two experts, each as one vector.

    Args:
        layer: a decoder layer.
        router: the layer's.
        experts: E.
    """
    products = torch.zeros(experts, experts, dtype=torch.float64)
    for tensor in expert_parameters(layer, router, experts).values():
        flat = tensor.detach().float().flatten(1)
        products += (flat @ flat.T).cpu().double()
    norms = products.diagonal().sqrt().clamp_min(1e-30)
    return products / norms[:, None] / norms[None, :]


def similarity_statistics(model: Any) -> dict[str, Any]:
    """The mean cosine of two different experts' weights: 1 for copies, near 0 for independent random weights.

    Returns:
        `expert_similarity`, the mean over layers, and `expert_similarity_by_layer`.
    """
    _, layers = find_layers(model)
    found = []
    for index, router in find_routers(model):
        experts = gate_spec(router).experts
        cosine = weight_cosine(layers[index], router, experts)
        pairs = experts * (experts - 1)
        found.append(((cosine.sum() - cosine.trace()) / pairs).item() if pairs else 1.0)
    mean = sum(found) / len(found)
    return {"expert_similarity": round(mean, 6), "expert_similarity_by_layer": [round(value, 6) for value in found]}
