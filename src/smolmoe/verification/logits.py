"""The difference between two models' outputs: pure functions of logits and routings, and their sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from smolmoe.core.devices import in_double
from smolmoe.moe.routing import Routing, flipped, margin

IN_CACHE = 1 << 18  # doubles
CLOSE_CALL = 1e-4  # largest margin of a close call, relative to the layer's largest |score|


def next_token_losses(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """[S-1]: -log p of each next token, in nats. Logits [S, V], ids [S]."""
    return F.cross_entropy(logits[:-1].float(), ids[1:].to(logits.device), reduction="none")


@dataclass
class Comparison:
    """Sums over sequences of the difference between a model's logits [S, V] and a reference's."""

    per_sequence: list[float] = field(default_factory=list)
    max_logit: float = 0.0
    finite: bool = True
    _abs: float = 0.0
    _kl: float = 0.0
    _agree: int = 0
    _tokens: int = 0
    _values: int = 0
    _loss: float = 0.0
    _reference_loss: float = 0.0
    _predicted: int = 0

    def add(self, reference: torch.Tensor, other: torch.Tensor, ids: torch.Tensor) -> None:
        """Logits [S, V] of both for the tokens ids [S]."""
        reference, other = reference.float(), other.float()
        difference = (reference - other).abs_()
        self.finite &= bool(torch.isfinite(other).all())
        self.per_sequence.append(difference.max().item())
        self.max_logit = max(self.max_logit, reference.abs().max().item())
        self._abs += in_double(difference).sum().item()
        self._values += difference.numel()
        self._kl += _kl(reference, other)
        self._agree += int((reference.argmax(-1) == other.argmax(-1)).sum())
        self._tokens += len(ids)
        self._loss += in_double(next_token_losses(other, ids)).sum().item()
        self._reference_loss += in_double(next_token_losses(reference, ids)).sum().item()
        self._predicted += len(ids) - 1

    @property
    def max_abs(self) -> float:
        # max() would ignore a NaN
        return max(self.per_sequence) if self.finite else float("inf")

    @property
    def mean_abs(self) -> float:
        return self._abs / self._values

    @property
    def kl(self) -> float:
        """Mean over tokens of KL(reference || other), in nats."""
        return self._kl / self._tokens

    @property
    def top1(self) -> float:
        """Top-1 agreement: share of tokens for which both have the same most likely token."""
        return self._agree / self._tokens

    @property
    def loss(self) -> float:
        return self._loss / self._predicted

    @property
    def reference_loss(self) -> float:
        return self._reference_loss / self._predicted


def _kl(reference: torch.Tensor, other: torch.Tensor) -> float:
    """The sum over tokens of KL(reference || other) of logits [S, V], in nats.

    In double precision: the KL of equal distributions must not be lost in rounding. A few tokens at a time, so that the
    doubles stay in the processor's cache: that is several times faster for a large V.
    """
    rows = max(1, IN_CACHE // reference.shape[-1])
    total = 0.0
    for a, b in zip(reference.split(rows), other.split(rows), strict=True):
        log_p, log_q = in_double(a).log_softmax(-1), in_double(b).log_softmax(-1)
        total += F.kl_div(log_q, log_p, log_target=True, reduction="sum").item()
    return total


def before_first_close_call(base: Sequence[Routing], other: Sequence[Routing]) -> torch.Tensor:
    """[S] bool: positions of one sequence that no close call of a router has touched in either run.

    If the last chosen and the first unchosen expert of a token score the same up to rounding, two equivalent
    computations may choose differently; the token and every later one then differ, which is not an error. A different
    choice by a margin above the noise is not a close call.

    Args:
        base, other: each layer's routing of the same S tokens in two runs.
    """
    touched = torch.zeros(len(base[0].indices), dtype=torch.bool)
    for a, b in zip(base, other, strict=True):
        close = margin(a) <= CLOSE_CALL * a.scores.abs().max()
        touched |= (flipped(a, b) & close).cpu()
    return touched.cumsum(0) == 0


def flip_rate(base: Sequence[Routing], other: Sequence[Routing]) -> float:
    """Share of (token, layer) pairs whose set of experts differs between two runs."""
    return torch.cat([flipped(a, b) for a, b in zip(base, other, strict=True)]).float().mean().item()


def largest(difference: torch.Tensor) -> float:
    """The largest |value|; 0 if empty, infinite if any is NaN."""
    if not difference.numel():
        return 0.0
    value = difference.abs().max().item()
    return value if value == value else float("inf")
