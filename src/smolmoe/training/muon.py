"""Muon for the matrices of the decoder layers, AdamW for all other parameters, as one optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from smolmoe.moe.structure import find_layers
from smolmoe.training.optim import expert_names, router_names

NAME = "muon"  # of `trainer.optim`
BASE = "adamw_torch_fused"  # what transformers is told to make of it
_FUSED = ("gate_up_proj", "input_linear")  # gate and up in one matrix
_EPSILON = 1e-7
# A group's layout -> the matrices [..., A, B] of a parameter, as a view. Halves are gate and up.
_MATRICES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "whole": lambda tensor: tensor,
    "rows": lambda tensor: tensor.unflatten(-2, (2, -1)),
    "columns": lambda tensor: tensor.unflatten(-1, (2, -1)).movedim(-2, -3),
    "alternating rows": lambda tensor: tensor.unflatten(-2, (-1, 2)).movedim(-2, -3),
    "alternating columns": lambda tensor: tensor.unflatten(-1, (-1, 2)).movedim(-1, -3),
}


class Muon(torch.optim.AdamW):
    """AdamW; in groups with a `muon` layout Muon (Jordan et al. 2024), matrix by matrix, also in stacks [E, A, B].

    The update of torch.optim.Muon with `adjust_lr_fn="match_rms_adamw"` (arXiv 2502.16982): steps have the size of
    AdamW's, so that one learning rate and one weight decay serve both. A matrix whose gradient is 0, an expert without
    tokens, is left alone, as torch leaves a parameter without a gradient: normalised, what remains of its momentum
    would move it at full speed.

    Args:
        params: as torch's optimisers take them; groups may have a `muon` layout, see `muon_layouts`.
        momentum: of the mean of gradients, with Nesterov's step.
        ns_steps: Newton-Schulz iterations.
        **adamw: arguments of AdamW.
    """

    def __init__(self, params: Any, *, momentum: float = 0.95, ns_steps: int = 5, **adamw: Any):
        super().__init__(params, **adamw)
        self.momentum, self.ns_steps = momentum, ns_steps
        # Of fused AdamW, whose kernel unscales the gradients of fp16 itself; here the scaler has to.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group.get("muon")]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            for parameter in group["params"] if group.get("muon") else ():
                if parameter.grad is not None:
                    self._step_matrices(parameter, parameter.grad, group)
        return loss

    def _step_matrices(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["momentum_buffer"] = torch.zeros_like(parameter)
        state["step"] += 1
        view = _MATRICES[group["muon"]]
        weight, grad, mean = view(parameter), view(gradient), view(state["momentum_buffer"])
        used = (grad != 0).any(-1, keepdim=True).any(-2, keepdim=True)  # [..., 1, 1]
        mean.lerp_(grad, (1 - self.momentum) * used)
        update = orthogonalise(grad.lerp(mean, self.momentum), self.ns_steps)
        rate = group["lr"] * 0.2 * math.sqrt(max(weight.shape[-2:]))
        weight.mul_(1 - group["lr"] * group["weight_decay"] * used)
        weight.sub_(rate * used * update)


def orthogonalise(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """U V^T, approximately, of matrices U S V^T [..., A, B]: singular values between about .7 and 1.2, in bf16.

    Quintic Newton-Schulz iterations with the coefficients of torch.optim.Muon, all matrices at once.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    found = matrices.bfloat16().reshape(-1, *matrices.shape[-2:])
    is_tall = found.shape[-2] > found.shape[-1]
    found = found.mT if is_tall else found
    found = found / found.flatten(1).norm(dim=1).clamp(min=_EPSILON)[:, None, None]
    for _ in range(steps):
        gram = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return (found.mT if is_tall else found).reshape(matrices.shape)


def muon_layouts(model: nn.Module) -> dict[str, str]:
    """Name -> layout of the parameters that Muon trains: matrices of the decoder layers and stacks of experts'.

    Not routers, the gates of shared experts, norms, biases, embeddings and the head. Gate and up projections in one
    matrix are two matrices.
    """
    path, _ = find_layers(model)
    routers, experts = router_names(model), expert_names(model)
    found = {}
    for name, parameter in model.named_parameters():
        shape = parameter.shape[1:] if name in experts and parameter.ndim == 3 else parameter.shape
        is_matrix = len(shape) == 2 and min(shape) > 1 and not name.endswith("bias")
        if is_matrix and name.startswith(f"{path}.") and name not in routers:
            found[name] = _layout(model, name)
    return found


def _layout(model: nn.Module, name: str) -> str:
    parent, _, own = name.rpartition(".")
    if own == "weight":
        own = parent.rpartition(".")[2]
    if own not in _FUSED:
        return "whole"
    module = model.get_submodule(parent)
    axis = "columns" if getattr(module, "is_transposed", False) else "rows"
    return axis if getattr(module, "is_concatenated", True) else f"alternating {axis}"
