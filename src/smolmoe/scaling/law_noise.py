"""The uncertainty of a sweep's points: from documents, seeds and noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smolmoe.core.statistics import resample
from smolmoe.errors import DataError

Floats = NDArray[np.float64]

_AT_ONCE = 64  # samples of documents in memory


@dataclass(frozen=True)
class Observed:
    """Trainings of B budgets with S seeds each, measured on the same N held-out documents.

    Attributes:
        tokens: of the budgets [B], ascending.
        nll: summed negative log-likelihood of each document, in nats [B, S, N].
        counts: tokens of each document [N].
    """

    tokens: Floats
    nll: Floats
    counts: Floats

    def __post_init__(self) -> None:
        if self.nll.shape != (len(self.tokens), self.nll.shape[1], len(self.counts)) or not self.nll.size:
            raise DataError(
                "every budget needs every seed, on the same documents.", field="points", value=self.nll.shape
            )
        if not (np.isfinite(self.nll).all() and (self.losses > 0).all()):
            raise DataError(
                "a loss is not positive.", field="points", value=self.losses.ravel().tolist(), fix="Leave it out."
            )

    @property
    def losses(self) -> Floats:
        """Nats per token [B, S]."""
        found: Floats = self.nll.sum(axis=2) / self.counts.sum()
        return found

    @property
    def seeds(self) -> int:
        return int(self.nll.shape[1])


@dataclass(frozen=True)
class Noise:
    """Standard deviations relative to the loss, and their degrees of freedom.

    Attributes:
        point, point_freedom: of one training; 0 without residual degrees of freedom.
        seed, seed_freedom: of the part that all budgets of a seed share.
    """

    point: float
    point_freedom: int
    seed: float
    seed_freedom: int


def noise_around(losses: Floats, fitted: Floats, parameters: int) -> Noise:
    """The noise of trainings, from the residuals of a fit.

    The part that all budgets of a seed share moves a whole curve, the rest a single point; with one seed the former
    cannot be estimated. The shared part includes the mean noise of its points, which makes intervals wider.

    Args:
        losses: [B, S].
        fitted: [B].
        parameters: number of fitted parameters; B if every budget is fitted by its mean.
    """
    budgets, seeds = losses.shape
    relative = losses / fitted[:, None] - 1
    shared = relative.mean(axis=0) - relative.mean()
    own = relative - shared
    freedom = budgets * seeds - parameters - (seeds - 1)
    return Noise(
        point=float(np.sqrt((own**2).sum() / freedom)) if freedom > 0 else 0.0,
        point_freedom=max(0, freedom),
        seed=float(np.sqrt((shared**2).sum() / (seeds - 1))) if seeds > 1 else 0.0,
        seed_freedom=seeds - 1,
    )


def without_seeds(losses: Floats) -> Floats:
    """The losses [..., B, S] without the part that a seed shares over its budgets; the mean level stays.

    Otherwise a robust fit could follow one seed at one budget and another at the next, which bends the law.
    """
    logs = np.log(losses)
    shared = np.median(logs - np.median(logs, axis=-1, keepdims=True), axis=-2, keepdims=True)
    aligned: Floats = np.exp(logs - shared + shared.mean(axis=-1, keepdims=True))
    return aligned


def draw_documents(observed: Sequence[Observed], draws: int, rng: np.random.Generator) -> list[Floats]:
    """Losses [R, B, S] of each of these on the same resampled documents.

    Raises:
        DataError: not the same documents.
    """
    counts = observed[0].counts
    if any(not np.array_equal(other.counts, counts) for other in observed):
        raise DataError("the points were not measured on the same documents.", field="points", value=len(observed))
    documents = len(counts)
    found = [np.empty((draws, *one.losses.shape)) for one in observed]
    for first in range(0, draws, _AT_ONCE):
        size = min(_AT_ONCE, draws - first)
        times = resample(documents, size, rng)
        tokens = times @ counts
        for one, into in zip(observed, found, strict=True):
            sums = times @ one.nll.reshape(-1, documents).T
            into[first : first + size] = (sums / tokens[:, None]).reshape(size, *one.losses.shape)
    return found


def draw_noise(noise: Noise, shape: tuple[int, int], draws: int, rng: np.random.Generator) -> Floats:
    """Relative noise [R, B, S]: normal, with a standard deviation sampled according to its degrees of freedom."""
    budgets, seeds = shape
    point = noise.point * _uncertain(noise.point_freedom, draws, rng)
    seed = noise.seed * _uncertain(noise.seed_freedom, draws, rng)
    own = point[:, None, None] * rng.standard_normal((draws, budgets, seeds))
    shared = seed[:, None, None] * rng.standard_normal((draws, 1, seeds))
    return own + shared


def _uncertain(freedom: int, draws: int, rng: np.random.Generator) -> Floats:
    """Samples [R] of the ratio of the true to the estimated standard deviation."""
    if freedom == 0:
        return np.ones(draws)
    factors: Floats = np.sqrt(freedom / rng.chisquare(freedom, size=draws))
    return factors
