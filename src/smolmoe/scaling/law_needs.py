"""The data that a lower perplexity needs: by a power law without a floor, and by the law with one."""

from __future__ import annotations

import numpy as np

from smolmoe.results.scaling_law import Fold, Need, Power
from smolmoe.scaling.law import Fit, interval, law_of, reach
from smolmoe.scaling.law_noise import Floats, Noise, draw_noise

LOWER = (0.10, 0.25, 0.50)  # reductions of the perplexity at the largest budget
_FARTHEST = 1e12  # times the data; beyond it no amount is enough


def power_of(fit: Fit) -> Power | None:
    """The power law of perplexity through a curve's budgets, and its needs; None for a single budget."""
    tokens, losses = fit.observed.tokens, fit.observed.losses.mean(axis=1)
    if len(tokens) < 2:
        return None
    exponent, level = _fitted(tokens, losses[None, :])
    fitted = level[0] - exponent[0] * np.log(tokens)
    drawn, _ = _fitted(tokens, fit.losses + _misfit(losses - fitted, len(fit.losses)))
    known = interval(float(exponent[0]), drawn)
    tenfold = interval(float(exponent[0] * np.log(10)), drawn * np.log(10))
    return Power(
        exponent=known,
        tenfold=tenfold,
        tenfold_share=interval(float(1 - 10 ** -exponent[0]), 1 - 10**-drawn),
        residual=float(np.sqrt(np.square(np.expm1(losses - fitted)).mean())),
        needs=tuple(_need(fit, lower, exponent, drawn) for lower in LOWER),
    )


def _fitted(tokens: Floats, losses: Floats) -> tuple[Floats, Floats]:
    """Exponent and log of the scale [R] of ln perplexity = level - exponent ln D, for losses [R, B].

    Weighted by the squared perplexity, which to first order is least squares of the perplexity.
    """
    x = np.log(tokens)[None, :]
    weights = np.exp(2 * (losses - losses.max(axis=1, keepdims=True)))
    weights = weights / weights.sum(axis=1, keepdims=True)
    middle, mean = (weights * x).sum(axis=1, keepdims=True), (weights * losses).sum(axis=1, keepdims=True)
    slope = (weights * (x - middle) * (losses - mean)).sum(axis=1) / (weights * (x - middle) ** 2).sum(axis=1)
    return -slope, mean[:, 0] - slope * middle[:, 0]


def _misfit(residual: Floats, draws: int) -> Floats:
    """Samples [R, B] of the residuals of the power law, because a line does not describe a curve that bends."""
    freedom = len(residual) - 2
    if freedom < 1:
        return np.zeros((draws, len(residual)))
    noise = Noise(float(np.sqrt((residual**2).sum() / freedom)), freedom, 0.0, 0)
    return draw_noise(noise, (len(residual), 1), draws, np.random.default_rng(0))[:, :, 0]


def _need(fit: Fit, lower: float, exponent: Floats, drawn: Floats) -> Need:
    nats = float(-np.log1p(-lower))
    fold = _ends(_folds(nats, exponent), _folds(nats, drawn))
    largest = float(fit.observed.tokens[-1])
    tokens = None if fold.value is None else round(fold.value * largest)
    far = _FARTHEST if tokens is None else tokens
    return Need(lower, nats, fold, _by_law(fit, nats), tokens, reach(far, largest))


def _folds(nats: float, exponent: Floats) -> Floats:
    """exp(nats / exponent); infinite if the loss does not fall."""
    with np.errstate(divide="ignore", over="ignore"):
        found: Floats = np.where(exponent > 0, np.exp(nats / np.maximum(exponent, 1e-12)), np.inf)
    return found


def _by_law(fit: Fit, nats: float) -> Fold | None:
    """By the fitted law, if the points determine its exponent."""
    law = law_of(fit)
    if law is None or not law.identified or fit.best is None or fit.resampled is None:
        return None
    largest = fit.observed.tokens[-1]
    found = []
    for laws in (fit.best, fit.resampled):
        loss = laws.at(np.array([largest + fit.start_tokens]))[:, 0] - nats
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            tokens = laws.unit * ((loss - laws.offset) / laws.scale) ** (-1 / laws.exponent) - fit.start_tokens
        found.append(np.where(loss > laws.offset, tokens / largest, np.inf))
    return _ends(*found)


def _ends(value: Floats, drawn: Floats) -> Fold:
    """The value with quantiles of its samples, without interpolation, because an end may be infinite."""
    low, high = np.quantile(drawn, [0.025, 0.975], method="nearest")
    ends = (float(value[0]), min(float(value[0]), float(low)), max(float(value[0]), float(high)))
    return Fold(*(None if not end < _FARTHEST else end for end in ends))
