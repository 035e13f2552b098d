"""The law of upcycling with varied dense training (arXiv 2502.03009).

L(D1, D2) = E + A D1^-a1 D2^(-a2 + a3 ln D1): with a positive a3, tokens after the conversion gain less the longer the
dense model was trained before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from smolmoe.results.scaling_law import DenseExponent, JointLaw
from smolmoe.scaling.law import interval
from smolmoe.scaling.law_fit import HUBER
from smolmoe.scaling.law_noise import Floats, Observed, draw_documents, draw_noise, noise_around, without_seeds

PARAMETERS = 5
DRAWS = 300
_FLOORS = (0.0, 0.3, 0.6, 0.8, 0.9, 0.95, 0.98, 0.995)  # of the lowest loss: starts of the search for the offset
_HIGHEST = 0.9999  # of the lowest loss: upper bound of the offset
_LOWEST = 0.05


@dataclass(frozen=True)
class _Points:
    """The points' ln D1 and ln D2, centred [n], and their means."""

    dense: Floats
    upcycled: Floats
    centres: tuple[float, float]

    @property
    def design(self) -> Floats:
        """Columns [n, 4] whose coefficients are ln A, -a1, -a2 and a3 of the centred logarithms."""
        return np.stack([np.ones_like(self.dense), self.dense, self.upcycled, self.dense * self.upcycled], axis=1)


def joint_reason(observed: Sequence[Observed], dense_tokens: Sequence[int]) -> str | None:
    """Why these points are too few for the joint law; None if they are enough."""
    dense, upcycled = len(set(dense_tokens)), len({float(t) for one in observed for t in one.tokens})
    points = sum(len(one.tokens) for one in observed)
    if dense < 2 or upcycled < 3 or points <= PARAMETERS:
        return (
            f"{dense} dense budgets and {upcycled} budgets after the conversion make {points} points, but the joint "
            f"law has {PARAMETERS} parameters: it takes at least 2 dense budgets, 3 after the conversion, and 6 points."
        )
    return None


def fit_joint(observed: Sequence[Observed], dense_tokens: Sequence[int], *, draws: int = DRAWS) -> JointLaw:
    """The joint law, with intervals as in `fit_curves`.

    Args:
        observed: of each dense budget, on the same documents and with the same number of seeds.
        dense_tokens: D1 of each.

    Raises:
        ValueError: too few points, as `joint_reason` says.
        DataError: not the same documents.
    """
    reason = joint_reason(observed, dense_tokens)
    if reason is not None:
        raise ValueError(reason)
    rng = np.random.default_rng(0)
    losses = np.concatenate([one.losses for one in observed])  # [C B, S]
    seeds = losses.shape[1]
    points = _points(observed, dense_tokens)
    best = _best(points, without_seeds(losses))
    fitted = _losses(best, points.design)
    noise = noise_around(losses, fitted, PARAMETERS)
    documents = np.concatenate(draw_documents(observed, draws, rng), axis=1)
    moved = (documents / losses) * (1 + draw_noise(noise, (len(losses), seeds), draws, rng))
    aligned = without_seeds(fitted[:, None] * np.maximum(moved, _LOWEST))
    drawn = np.array([_fit(points, one, best) for one in aligned])
    return _law(best, drawn, points, sorted(set(dense_tokens)), losses, fitted)


def _points(observed: Sequence[Observed], dense_tokens: Sequence[int]) -> _Points:
    dense = np.log(
        np.concatenate([np.full(len(o.tokens), float(d)) for o, d in zip(observed, dense_tokens, strict=True)])
    )
    upcycled = np.log(np.concatenate([one.tokens for one in observed]))
    centres = float(dense.mean()), float(upcycled.mean())
    return _Points(dense - centres[0], upcycled - centres[1], centres)


def _losses(parameters: Floats, design: Floats) -> Floats:
    """Losses [n] by the offset and four coefficients."""
    found: Floats = parameters[0] + np.exp(np.clip(design @ parameters[1:], -50, 50))
    return found


def _best(points: _Points, losses: Floats) -> Floats:
    """The best fit from many offsets, each with a plane through the logarithms of the losses above it."""
    means, design = losses.mean(axis=1), points.design
    found = []
    for share in _FLOORS:
        offset = share * means.min()
        above = np.log(np.maximum(means - offset, 1e-3 * means))
        start = np.concatenate([[offset], np.linalg.lstsq(design, above, rcond=None)[0]])
        fit = _fit(points, losses, start)
        relative = np.abs(_losses(fit, design)[:, None] / losses - 1)
        loss = np.where(relative <= HUBER, relative**2 / 2, HUBER * (relative - HUBER / 2)).sum()
        found.append((float(loss), fit))
    return min(found, key=lambda pair: pair[0])[1]


def _fit(points: _Points, losses: Floats, start: Floats) -> Floats:
    """The offset and four coefficients that minimise the Huber loss of the residuals of log L."""
    design, logs = points.design, np.log(losses)
    highest = _HIGHEST * float(losses.min())

    def residuals(parameters: Floats) -> Floats:
        found: Floats = (np.log(_losses(parameters, design))[:, None] - logs).ravel()
        return found

    def slopes(parameters: Floats) -> Floats:
        above = np.exp(np.clip(design @ parameters[1:], -50, 50))
        total = parameters[0] + above
        columns = np.concatenate([np.ones((len(design), 1)), above[:, None] * design], axis=1) / total[:, None]
        return np.repeat(columns, losses.shape[1], axis=0)

    begin = start.copy()
    begin[0] = min(max(begin[0], 1e-6 * highest), highest * 0.999)
    low, high = np.full(PARAMETERS, -np.inf), np.full(PARAMETERS, np.inf)
    low[0], high[0] = 0.0, highest
    result = least_squares(residuals, begin, slopes, bounds=(low, high), loss="huber", f_scale=HUBER, max_nfev=200)
    found: Floats = result.x
    return found


def _law(
    best: Floats, drawn: Floats, points: _Points, dense_tokens: Sequence[int], losses: Floats, fitted: Floats
) -> JointLaw:
    values, draws = _uncentred(best[None], points.centres)[0], _uncentred(drawn, points.centres)
    offset, scale, dense, upcycled, interaction = (interval(float(values[i]), draws[:, i]) for i in range(PARAMETERS))
    exponents = tuple(DenseExponent(d1, interval(*_exponent(values, draws, float(np.log(d1))))) for d1 in dense_tokens)
    identified = interaction.low > 0 or interaction.high < 0
    notes = []
    if not identified:
        notes.append("The interval of the interaction includes 0: these points do not show an effect of dense tokens.")
    if offset.low <= 1e-3:
        notes.append("The interval of the offset E reaches 0.")
    residual = float(np.sqrt(((losses.mean(axis=1) / fitted - 1) ** 2).mean()))
    return JointLaw(offset, scale, dense, upcycled, interaction, exponents, residual, identified, tuple(notes))


def _exponent(values: Floats, draws: Floats, log_dense: float) -> tuple[float, Floats]:
    return float(values[3] - values[4] * log_dense), draws[:, 3] - draws[:, 4] * log_dense


def _uncentred(parameters: Floats, centres: tuple[float, float]) -> Floats:
    """E, A, a1, a2, a3 [R, 5] of offset and coefficients of centred logarithms [R, 5]."""
    offset, level, dense, upcycled, both = parameters.T
    one, two = centres
    log_scale = level - dense * one - upcycled * two + both * one * two
    scale = np.exp(np.clip(log_scale, -200, 200))
    return np.stack([offset, scale, -(dense - both * two), -(upcycled - both * one), both], axis=1)
