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


def fit_linear_probe(x: torch.Tensor, labels: torch.Tensor, classes: int, *, steps: int = STEPS) -> LinearProbe:
    """Multinomial logistic regression with equal class weights, fitted by L-BFGS on all tokens at once.

    Args:
        x: [T, D]; it is standardised here.
        labels: [T], 0 to `classes` - 1.
        steps: iterations at most.
    """
    x = x.float()
    mean, std = x.mean(0), x.std(0, correction=0).clamp_min(1e-6)
    z = (x - mean) / std
    counts = torch.bincount(labels, minlength=classes).float()
    per_token = (1 / counts.clamp_min(1))[labels] / int((counts > 0).sum())
    weight = torch.zeros(x.shape[1], classes, device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=steps, history_size=10, line_search_fn="strong_wolfe")

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


def linear_probe(
    x: torch.Tensor, labels: torch.Tensor, judged_x: torch.Tensor, judged_labels: torch.Tensor, classes: int
) -> list[float]:
    """Accuracy of each class: fitted on x [T, D], evaluated on judged_x [T', D]."""
    right = fit_linear_probe(x, labels, classes).predict(judged_x) == judged_labels
    return class_means(right, judged_labels, classes)


def class_means(right: torch.Tensor, labels: torch.Tensor, classes: int) -> list[float]:
    """The share of True in `right` [T] of each class; 0 for a class without tokens."""
    hits = torch.bincount(labels, weights=right.double(), minlength=classes)
    return (hits / torch.bincount(labels, minlength=classes).clamp_min(1)).tolist()


def macro(values: Sequence[float]) -> float:
    """The mean over domains."""
    return sum(values) / len(values)
