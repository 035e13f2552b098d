"""Linear classifiers of a token's domain: the ceiling of routing, which is linear in the same input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

RIDGE = 1e-3  # on standardised features: enough for unused directions
STEPS = 200


@dataclass(frozen=True)
class LinearProbe:
    """logits = x @ weight + bias, with standardisation folded in: weight [D, C], bias [C]."""

    weight: torch.Tensor
    bias: torch.Tensor

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """The class [T] of each of x [T, D]."""
        return (x.float() @ self.weight + self.bias).argmax(-1)


def fit_linear_probe(x: torch.Tensor, labels: torch.Tensor, classes: int) -> LinearProbe:
    """Multinomial logistic regression with equal class weights, fitted by L-BFGS on all tokens at once.

    Args:
        x: [T, D]; it is standardised here.
        labels: [T], 0 to `classes` - 1.
    """
    x = x.float()
    mean, std = x.mean(0), x.std(0, correction=0).clamp_min(1e-6)
    z = (x - mean) / std
    counts = torch.bincount(labels, minlength=classes).float()
    per_token = (1 / counts.clamp_min(1))[labels] / int((counts > 0).sum())
    weight = torch.zeros(x.shape[1], classes, device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=STEPS, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        errors = torch.nn.functional.cross_entropy(z @ weight + bias, labels, reduction="none")
        total = (errors * per_token).sum() + RIDGE / 2 * weight.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimiser.step(loss)
    scaled = (weight / std[:, None]).detach()
    return LinearProbe(scaled, (bias - mean @ scaled).detach())


def macro(values: Sequence[float]) -> float:
    """The mean over domains."""
    return sum(values) / len(values)
