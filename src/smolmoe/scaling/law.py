"""The law of a sweep, L(D) = E + A (D + D0)^-alpha, with intervals: what more tokens buy, and how far that is known.

The form is that of arXiv 2203.15556 in D alone; the fit is robust and the interval a bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smolmoe.core.statistics import Interval
from smolmoe.results.scaling_law import Gain, Law, Prediction, Uncertainty
from smolmoe.scaling.law_fit import EXPONENTS, PowerLaws, fit_power_laws
from smolmoe.scaling.law_noise import Noise, Observed, draw_documents, draw_noise, noise_around, without_seeds

Floats = NDArray[np.float64]

PARAMETERS = 3
LEVEL = 0.95
DRAWS = 1000
FAR = 10  # times the largest budget: beyond, the law is a guess
_BAND = 12  # places of the band in each factor of ten
_LOWEST = 0.05  # of a loss, that noise of few degrees of freedom may leave of it


@dataclass(frozen=True)
class Fit:
    """A curve's law and its draws.

    Attributes:
        observed: the points.
        start_tokens: D0 of the law.
        best: the law of the points [1]; None where there are too few.
        drawn: the laws of points drawn anew [R].
        losses: mean losses of the budgets, drawn anew [R, B].
        noise: of the trainings.
    """

    observed: Observed
    start_tokens: int
    best: PowerLaws | None
    drawn: PowerLaws | None
    losses: Floats
    noise: Noise

    @property
    def reason(self) -> str | None:
        """Why there is no law."""
        if self.best is not None:
            return None
        budgets = len(self.observed.tokens)
        return (
            f"{budgets} budget{'s' if budgets > 1 else ''}, but the law has {PARAMETERS} numbers: it takes at least "
            f"{PARAMETERS} budgets to fit it, and {PARAMETERS + 2} to judge the fit."
        )

    def at(self, tokens: Floats) -> tuple[Floats, Floats]:
        """The law's losses [n] and those of the draws [R, n] at numbers of tokens [n], which need a law."""
        if self.best is None or self.drawn is None:
            raise ValueError(self.reason)
        shifted = tokens + self.start_tokens
        return self.best.at(shifted)[0], self.drawn.at(shifted)


def fit_curves(
    observed: Sequence[Observed], start_tokens: Sequence[int | None], *, draws: int = DRAWS, seed: int = 0
) -> list[Fit]:
    """The laws of one or several curves that were measured on the same documents; draws share their documents.

    Args:
        start_tokens: of each curve's warm start, where known. They count as training tokens where that fits better.
        draws: of the bootstrap.

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
    """The law without and with the tokens of the warm start: of the two, the one that fits better."""
    found = []
    for offset in sorted({0, start_tokens or 0}):
        points = np.repeat(observed.tokens + offset, observed.seeds)
        found.append((fit_power_laws(points, without_seeds(observed.losses).reshape(1, -1)), offset))
    return min(found, key=lambda pair: float(pair[0].objective[0]))


# -- what a fit says --------------------------------------------------------------------------------------------------


def law_of(fit: Fit) -> Law | None:
    """The law's numbers with their intervals, and what to know of them; None where there are too few points."""
    if fit.best is None or fit.drawn is None:
        return None
    fitted = fit.best.at(fit.observed.tokens + fit.start_tokens)[0]
    residual = fit.observed.losses.mean(axis=1) / fitted - 1
    exponent = interval(float(fit.best.exponent[0]), fit.drawn.exponent)
    unknown = _unidentified(fit, exponent)
    return Law(
        offset=interval(float(fit.best.offset[0]), fit.drawn.offset),
        scale=interval(float(fit.best.unscaled[0]), fit.drawn.unscaled),
        exponent=exponent,
        start_tokens=fit.start_tokens,
        residual=float(np.sqrt((residual**2).mean())),
        identified=not unknown,
        notes=tuple(unknown + _notes(fit)),
    )


def _unidentified(fit: Fit, exponent: Interval) -> list[str]:
    """Why the points do not tell offset and exponent."""
    ends = fit.observed.tokens[[0, -1]]
    value, drawn = fit.at(ends)
    drop = interval(float(value[0] - value[1]), drawn[:, 0] - drawn[:, 1])
    if drop.low <= 1e-9:
        return ["The loss does not fall measurably over these budgets: there is no exponent to tell."]
    low, high = EXPONENTS
    found = []
    if exponent.low <= low * 1.01:
        found.append(
            "The exponent is not told from 0: the loss may go on falling by the same for each 10x, without a floor "
            "that these budgets would show."
        )
    if exponent.high >= high / 1.01:
        found.append("The exponent has no upper end: the loss may have reached its floor within these budgets.")
    return found


def _notes(fit: Fit) -> list[str]:
    found = []
    assert fit.drawn is not None
    if float(np.quantile(fit.drawn.offset, (1 - LEVEL) / 2)) <= 0:
        found.append("The offset E is not told from 0.")
    if fit.noise.point_freedom == 0:
        found.append("Three points fix three numbers: nothing is left to judge the fit by.")
    elif fit.noise.point_freedom < 2:
        found.append("One degree of freedom is left to judge the fit by: the intervals are as wide as that makes them.")
    if fit.start_tokens:
        found.append(f"The warm start's {fit.start_tokens:,} tokens count as training tokens: that fits better.")
    return found


def budgets_of(fit: Fit) -> tuple[Prediction, ...]:
    """The mean loss of each budget's seeds, as it was measured."""
    means = fit.observed.losses.mean(axis=1)
    return tuple(
        Prediction(int(tokens), interval(float(means[at]), fit.losses[:, at]), "measured")
        for at, tokens in enumerate(fit.observed.tokens)
    )


def neighbours_of(fit: Fit) -> tuple[Gain, ...]:
    """What each budget gains over the one before, from the losses as they were measured."""
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
    """What each 10x of tokens buys by the law, from the smallest budget on and from the largest on, up to `until`."""
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
    """The law with its interval from the smallest budget on, at budgets and evenly between, up to `until`."""
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
    """Whether a number of tokens is within the budgets that were measured: "measured", "extrapolated", "far"."""
    if tokens <= largest * 1.0001:
        return "measured"
    return "extrapolated" if tokens <= FAR * largest * 1.0001 else "far"


def interval(value: float, drawn: Floats) -> Interval:
    """The value with the quantiles of its draws; an interval always holds its value."""
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, min(value, float(low)), max(value, float(high)))


def uncertainty_of(fits: Sequence[Fit]) -> Uncertainty:
    """What the intervals of these fits are of."""
    seeds = fits[0].observed.seeds
    over = ["documents"]
    over += ["seeds"] if seeds > 1 else []
    over += ["residuals"] if any(fit.noise.point_freedom for fit in fits) else []
    draws = len(fits[0].losses)
    parts = {
        "documents": "held-out documents drawn anew, the same for all points",
        "seeds": f"what the budgets of a seed have in common, from {seeds} seeds",
        "residuals": "the noise of a single training, from what the fit leaves",
    }
    missing = "" if seeds > 1 else " One seed: what another order of the data would change everywhere is not in them."
    said = f"Intervals are the middle {LEVEL:.0%} of {draws:,} draws over {', '.join(parts[name] for name in over)}."
    return Uncertainty(LEVEL, draws, tuple(over), said + missing)
