"""Similarity of the experts of a layer: of their outputs on the same tokens, and of their weights."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from smolmoe.errors import SourceError
from smolmoe.moe.routing import find_routers
from smolmoe.moe.similarity import weight_cosine
from smolmoe.moe.structure import find_layers
from smolmoe.results.probe import Similarity

TOKENS = 512


def expert_similarity(model: Any, inputs: Sequence[torch.Tensor], experts: int) -> Similarity:
    """Linear CKA and mean cosine of the outputs, and cosine of the weights, of every two experts of each MoE layer.

    Every expert reads the same tokens, whatever the router chooses. Weight cosine alone is misleading: it hardly
    changes while the functions diverge.

    Args:
        inputs: of each layer's router, [T, D] each; up to 512 tokens are used.
        experts: E.

    Raises:
        SourceError: the experts of a layer cannot be called separately.
    """
    _, layers = find_layers(model)
    found: dict[str, list[list[list[float]]]] = {"cka": [], "output_cosine": [], "weight_cosine": []}
    for (index, router), x in zip(find_routers(model), inputs, strict=True):
        few = x[torch.linspace(0, len(x) - 1, min(TOKENS, len(x)), device=x.device).long()]
        outputs = expert_outputs(layers[index], router, few, experts)
        found["cka"].append(linear_cka(outputs).tolist())
        found["output_cosine"].append(output_cosine(outputs).tolist())
        found["weight_cosine"].append(weight_cosine(layers[index], router, experts).tolist())
    return Similarity(**found, tokens=min(TOKENS, *(len(x) for x in inputs)))


@torch.inference_mode()
def expert_outputs(layer: nn.Module, router: nn.Module, x: torch.Tensor, experts: int) -> torch.Tensor:
    """[E, T, D] on the CPU: the output of each expert alone on x [T, D] with gate 1, without shared experts.

    Raises:
        SourceError: no module `experts` is next to the router.
    """
    module = _experts_beside(layer, router)
    own = next(module.parameters()).dtype
    if len(inspect.signature(module.forward).parameters) == 1:  # each expert gets a share of the rows (Llama 4)
        together: torch.Tensor = module(x.to(own).repeat(experts, 1))
        return together.unflatten(0, (experts, -1)).float().cpu()
    # Twice, the second time with gate 0: some classes (LongCat) do not support one expert per token.
    gates = torch.tensor([1.0, 0.0], dtype=own, device=x.device).repeat(len(x), 1)
    chosen = torch.zeros(len(x), 2, dtype=torch.long, device=x.device)
    outputs = (module(x.to(own), chosen + expert, gates).reshape(x.shape) for expert in range(experts))
    return torch.stack([output.float().cpu() for output in outputs])


def linear_cka(outputs: torch.Tensor) -> torch.Tensor:
    """[E, E] of outputs [E, T, D]: linear centred kernel alignment (arXiv 1905.00414), 1 for equal up to rotation.

    Computed from T x T kernels, so that E² comparisons cost E kernels. 0 if an output is constant.
    """
    centred = (outputs - outputs.mean(1, keepdim=True)).double()
    kernels = (centred @ centred.transpose(1, 2)).flatten(1)
    kernels = kernels / kernels.norm(dim=1, keepdim=True).clamp_min(1e-30)
    return kernels @ kernels.T


def output_cosine(outputs: torch.Tensor) -> torch.Tensor:
    """[E, E] of outputs [E, T, D]: the mean over tokens of the cosine of two experts' outputs."""
    unit = torch.nn.functional.normalize(outputs.double(), dim=-1)
    return torch.einsum("etd,ftd->ef", unit, unit) / outputs.shape[1]


def _experts_beside(layer: nn.Module, router: nn.Module) -> nn.Module:
    for module in layer.modules():
        if any(child is router for child in module.children()):
            experts = getattr(module, "experts", None)
            if isinstance(experts, nn.Module) and not isinstance(experts, nn.ModuleList):
                return experts
    raise SourceError(
        "its experts are not a module that can be called separately.", field="model", value=type(router).__name__
    )
