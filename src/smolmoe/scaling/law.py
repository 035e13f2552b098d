"""The law of a sweep, L(D) = E + A (D + D0)^-alpha, with intervals.

The form is that of arXiv 2203.15556 in D alone; the fit is robust, and the intervals are from a bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from smolmoe.core.statistics import Interval
from smolmoe.results.scaling_law import Gain, Law, Prediction, Uncertainty
from smolmoe.scaling.law_fit import EXPONENTS, PowerLaws, fit_power_laws
from smolmoe.scaling.law_noise import Floats, Noise, Observed, draw_documents, draw_noise, noise_around, without_seeds

PARAMETERS = 3
LEVEL = 0.95
DRAWS = 1000
FAR = 10  # times the largest budget; beyond it the law is a guess
_BAND = 12  # points of the band per factor of ten
_LOWEST = 0.05  # of a loss: lower bound after noise of few degrees of freedom


@dataclass(frozen=True)
class Fit:
    """A curve's law and its bootstrap samples.

    Attributes:
        observed: the points.
        start_tokens: D0 of the law.
        best: the law of the points [1]; None with too few points.
        resampled: the laws of resampled points [R].
        losses: resampled mean losses of the budgets [R, B].
        noise: of the trainings.
    """

    observed: Observed
    start_tokens: int
    best: PowerLaws | None
    resampled: PowerLaws | None
    losses: Floats
    noise: Noise

    @property
    def reason(self) -> str | None:
        """Why there is no law."""
        if self.best is not None:
            return None
        budgets = len(self.observed.tokens)
        return (
            f"{budgets} budget{'s' if budgets > 1 else ''}, but the law has {PARAMETERS} parameters: it takes at least "
            f"{PARAMETERS} budgets to fit it, and {PARAMETERS + 2} to evaluate the fit."
        )

    def at(self, tokens: Floats) -> tuple[Floats, Floats]:
        """The losses [n] of the law and those of its samples [R, n] at numbers of tokens [n]."""
        if self.best is None or self.resampled is None:
            raise ValueError(self.reason)
        shifted = tokens + self.start_tokens
        return self.best.at(shifted)[0], self.resampled.at(shifted)


def fit_curves(
    observed: Sequence[Observed], start_tokens: Sequence[int | None], *, draws: int = DRAWS, seed: int = 0
) -> list[Fit]:
    """The laws of curves that were measured on the same documents; their bootstrap samples share the documents.

    Args:
        start_tokens: of each curve's warm start, if known; they count as training tokens if that fits better.
        draws: bootstrap samples.

    Raises:
        DataError: not the same documents.
    """
    rng = np.random.default_rng(seed)
    documents = draw_documents(observed, draws, rng)
    return [_fit(*curve, rng) for curve in zip(observed, start_tokens, documents, strict=True)]


def _fit(observed: Observed, start_tokens: int | None, documents: Floats, rng: np.random.Generator) -> Fit:
    losses = observed.losses
    budgets, seeds = losses.shape
    best, offset = (None, 0) if budgets < PARAMETERS else _best(observed, start_tokens)
    fitted = losses.mean(axis=1) if best is None else best.at(observed.tokens + offset)[0]
    noise = noise_around(losses, fitted, budgets if best is None else PARAMETERS)
    moved = (documents / losses) * (1 + draw_noise(noise, (budgets, seeds), len(documents), rng))
    moved = np.maximum(moved, _LOWEST)
    drawn = None
    if best is not None:
        points = np.repeat(observed.tokens + offset, seeds)
        drawn = fit_power_laws(points, without_seeds(fitted[:, None] * moved).reshape(len(moved), -1))
    return Fit(observed, offset, best, drawn, (losses * moved).mean(axis=2), noise)


def _best(observed: Observed, start_tokens: int | None) -> tuple[PowerLaws, int]:
    """The law without or with the tokens of the warm start, whichever fits better."""
    found = []
    for offset in sorted({0, start_tokens or 0}):
        points = np.repeat(observed.tokens + offset, observed.seeds)
        found.append((fit_power_laws(points, without_seeds(observed.losses).reshape(1, -1)), offset))
    return min(found, key=lambda pair: float(pair[0].objective[0]))


# -- results of a fit --------------------------------------------------------------------------------------------------


def law_of(fit: Fit) -> Law | None:
    """The law's parameters with intervals and notes; None with too few points."""
    if fit.best is None or fit.resampled is None:
        return None
    fitted = fit.best.at(fit.observed.tokens + fit.start_tokens)[0]
    residual = fit.observed.losses.mean(axis=1) / fitted - 1
    exponent = interval(float(fit.best.exponent[0]), fit.resampled.exponent)
    unknown = _unidentified(fit, exponent)
    return Law(
        offset=interval(float(fit.best.offset[0]), fit.resampled.offset),
        scale=interval(float(fit.best.unscaled[0]), fit.resampled.unscaled),
        exponent=exponent,
        start_tokens=fit.start_tokens,
        residual=float(np.sqrt((residual**2).mean())),
        identified=not unknown,
        notes=tuple(unknown + _notes(fit)),
    )


def _unidentified(fit: Fit, exponent: Interval) -> list[str]:
    """Why the points do not determine offset and exponent."""
    ends = fit.observed.tokens[[0, -1]]
    value, drawn = fit.at(ends)
    drop = interval(float(value[0] - value[1]), drawn[:, 0] - drawn[:, 1])
    if drop.low <= 1e-9:
        return ["The loss does not fall measurably over these budgets, so the exponent is undetermined."]
    low, high = EXPONENTS
    found = []
    if exponent.low <= low * 1.01:
        found.append(
            "The interval of the exponent reaches 0: the loss may keep falling by the same amount for each 10x, "
            "without a floor within these budgets."
        )
    if exponent.high >= high / 1.01:
        found.append("The exponent has no upper bound: the loss may have reached its floor within these budgets.")
    return found


def _notes(fit: Fit) -> list[str]:
    found = []
    assert fit.resampled is not None
    if float(np.quantile(fit.resampled.offset, (1 - LEVEL) / 2)) <= 0:
        found.append("The interval of the offset E reaches 0.")
    if fit.noise.point_freedom == 0:
        found.append("Three points determine three parameters: no degree of freedom is left to evaluate the fit.")
    elif fit.noise.point_freedom < 2:
        found.append("One degree of freedom is left to evaluate the fit, so the intervals are wide.")
    if fit.start_tokens:
        found.append(f"The warm start's {fit.start_tokens:,} tokens count as training tokens, which fits better.")
    return found


def budgets_of(fit: Fit) -> tuple[Prediction, ...]:
    """The measured mean loss over each budget's seeds."""
    means = fit.observed.losses.mean(axis=1)
    return tuple(
        Prediction(int(tokens), interval(float(means[at]), fit.losses[:, at]), "measured")
        for at, tokens in enumerate(fit.observed.tokens)
    )


def neighbours_of(fit: Fit) -> tuple[Gain, ...]:
    """The gain of each budget over the one before, from the measured losses."""
    tokens, means = fit.observed.tokens, fit.observed.losses.mean(axis=1)
    return tuple(
        Gain(
            int(tokens[at]),
            int(tokens[at + 1]),
            interval(float(means[at] - means[at + 1]), fit.losses[:, at] - fit.losses[:, at + 1]),
            "measured",
        )
        for at in range(len(tokens) - 1)
    )


def tenfold_of(fit: Fit, until: int) -> tuple[Gain, ...]:
    """The gain of each 10x of tokens by the law, from the smallest and from the largest budget, up to `until`."""
    if fit.best is None:
        return ()
    tokens = fit.observed.tokens
    begins = {int(start) * 10**k for start in tokens[[0, -1]] for k in range(12)}
    found = []
    for begin in sorted(begin for begin in begins if begin * 10 <= until * 1.001):
        value, drawn = fit.at(np.array([begin, begin * 10], dtype=float))
        drop = interval(float(value[0] - value[1]), drawn[:, 0] - drawn[:, 1])
        found.append(Gain(begin, begin * 10, drop, reach(begin * 10, tokens[-1])))
    return tuple(found)


def band_of(fit: Fit, until: int) -> tuple[Prediction, ...]:
    """The law with its interval, from the smallest budget to `until`, at the budgets and evenly between."""
    if fit.best is None:
        return ()
    tokens = fit.observed.tokens
    first, last = float(tokens[0]), float(max(until, tokens[-1]))
    count = max(2, math.ceil(_BAND * math.log10(last / first)) + 1)
    even = np.geomspace(first, last, count)
    far = [FAR * tokens[-1]] if FAR * tokens[-1] < last else []
    places = np.unique(np.round(np.concatenate([even, tokens, far])))
    value, drawn = fit.at(places)
    return tuple(
        Prediction(int(place), interval(float(value[at]), drawn[:, at]), reach(int(place), tokens[-1]))
        for at, place in enumerate(places)
    )


def reach(tokens: float, largest: float) -> str:
    """Whether a number of tokens is within the measured budgets: "measured", "extrapolated", "far"."""
    if tokens <= largest * 1.0001:
        return "measured"
    return "extrapolated" if tokens <= FAR * largest * 1.0001 else "far"


def interval(value: float, drawn: Floats) -> Interval:
    """The value with the quantiles of its samples; an interval always includes its value."""
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, min(value, float(low)), max(value, float(high)))


def uncertainty_of(fits: Sequence[Fit]) -> Uncertainty:
    """The sources of uncertainty of these fits."""
    seeds = fits[0].observed.seeds
    over = ["documents"]
    over += ["seeds"] if seeds > 1 else []
    over += ["residuals"] if any(fit.noise.point_freedom for fit in fits) else []
    draws = len(fits[0].losses)
    parts = {
        "documents": "resampled held-out documents, the same for all points",
        "seeds": f"what the budgets of a seed share, from {seeds} seeds",
        "residuals": "the noise of a single training, from the residuals of the fit",
    }
    missing = "" if seeds > 1 else " One seed: the effect of another order of the data is not included."
    sources = ", ".join(parts[name] for name in over)
    said = f"Intervals are the middle {LEVEL:.0%} of {draws:,} bootstrap samples over {sources}."
    return Uncertainty(LEVEL, draws, tuple(over), said + missing)
