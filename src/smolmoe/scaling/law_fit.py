"""Fits E + A D^-alpha to many curves at once: each exponent of a grid in closed form, and the best one refined."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smolmoe.scaling.law_noise import Floats

# Relative residuals beyond this count linearly: the log-residuals' Huber threshold of arXiv 2203.15556.
HUBER = 1e-3
EXPONENTS = (0.02, 3.0)  # lowest and highest: below, a power is close to a logarithm; above, to a step
_GRID = 48
_REFINED = (11, 11, 11)  # exponents between the neighbours of the best, round by round
_ROUNDS = 12  # of reweighting


@dataclass(frozen=True)
class PowerLaws:
    """R laws L(D) = offset + scale (D / unit)^-exponent.

    Attributes:
        offset, scale, exponent: [R]; offset and scale are not negative.
        unit: tokens.
        objective: [R], the Huber loss that was minimised.
    """

    offset: Floats
    scale: Floats
    exponent: Floats
    unit: float
    objective: Floats

    def at(self, tokens: Floats) -> Floats:
        """Losses [R, n] at these numbers of tokens [n]."""
        powers = (tokens[None, :] / self.unit) ** -self.exponent[:, None]
        return self.offset[:, None] + self.scale[:, None] * powers

    @property
    def unscaled(self) -> Floats:
        """A in nats tokens^alpha [R]."""
        return self.scale * self.unit**self.exponent


def fit_power_laws(tokens: Floats, losses: Floats) -> PowerLaws:
    """The laws that minimise the Huber loss of the relative residuals, which are those of log L to first order.

    For a given exponent the law is linear in offset and scale, so that the search is over one number.

    Args:
        tokens: of each point [n], may repeat.
        losses: of each point of R curves [R, n].
    """
    unit = float(np.exp(np.log(tokens).mean()))
    logs = np.log(tokens / unit)
    grid = np.broadcast_to(np.geomspace(*EXPONENTS, _GRID), (len(losses), _GRID))
    for count in (*_REFINED, 0):
        offset, scale, objective = _linear(grid, logs, losses)
        best = objective.argmin(axis=1)
        if count:
            low = _taken(grid, np.maximum(best - 1, 0))
            high = _taken(grid, np.minimum(best + 1, grid.shape[1] - 1))
            grid = np.geomspace(low, high, count, axis=1)
    found = (_taken(values, best) for values in (offset, scale, grid, objective))
    offset, scale, exponent, objective = found
    return PowerLaws(offset, scale, exponent, unit, objective)


def _taken(values: Floats, index: NDArray[np.intp]) -> Floats:
    """The value of each row at its index [R]."""
    taken: Floats = np.take_along_axis(values, index[:, None], axis=1)[:, 0]
    return taken


def _linear(exponents: Floats, logs: Floats, losses: Floats) -> tuple[Floats, Floats, Floats]:
    """Offset, scale and Huber loss [R, G] of the best law with each exponent [R, G], by reweighted least squares."""
    p = (1 / losses)[:, None, :]
    q = np.exp(-exponents[:, :, None] * logs) * p
    weights = np.ones_like(q)
    for _ in range(_ROUNDS):
        offset, scale = _solved(weights, p, q)
        residual = np.abs(offset[:, :, None] * p + scale[:, :, None] * q - 1)
        weights = HUBER / np.maximum(residual, HUBER)
    objective = np.where(residual <= HUBER, residual**2 / 2, HUBER * (residual - HUBER / 2)).sum(axis=2)
    return offset, scale, objective


def _solved(weights: Floats, p: Floats, q: Floats) -> tuple[Floats, Floats]:
    """Weighted least squares of offset p + scale q = 1, both at least 0."""
    wp, wq = weights * p, weights * q
    pp, pq, qq = (wp * p).sum(axis=2), (wp * q).sum(axis=2), (wq * q).sum(axis=2)
    sp, sq = wp.sum(axis=2), wq.sum(axis=2)
    determinant = np.maximum(pp * qq - pq * pq, 1e-300)
    offset, scale = (sp * qq - sq * pq) / determinant, (sq * pp - sp * pq) / determinant
    without_offset, without_scale = offset < 0, scale < 0
    scale = np.where(without_offset, sq / qq, np.where(without_scale, 0.0, scale))
    offset = np.where(without_offset, 0.0, np.where(without_scale, sp / pp, offset))
    return offset, scale
