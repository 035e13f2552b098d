"""Intervals and tests for models compared on the same documents, with one or several seeds each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from smolmoe.core.statistics import ends, resample
from smolmoe.evaluation.held_out import DocumentLosses, paired_difference
from smolmoe.evaluation.text_metrics import DRAWS, Floats
from smolmoe.results.comparison import Difference, Estimate, Span

SWAPS = 9_999  # random swaps of the test
SWAPS_AT_ONCE = 1 << 22  # documents times swaps held in memory


def estimate(sums: Floats, weights: Sequence[int]) -> Estimate:
    """The mean of a figure over the documents, seeds weighted equally.

    Args:
        sums: of the figure, per seed and document [S, D].
        weights: denominators: tokens or bytes of each document [D].
    """
    held: Floats = np.asarray(weights, dtype=np.float64)
    each = sums.sum(axis=1) / held.sum()
    draws = resample(len(weights), DRAWS, np.random.default_rng(0))
    low, high = ends(draws @ sums.mean(axis=0) / (draws @ held))
    return Estimate(float(each.mean()), Span(float(low), float(high)), over_seeds(each.tolist()))


def difference(first: Floats, second: Floats, weights: Sequence[int]) -> Difference:
    """`first` minus `second`, as sums over the same documents [S, D] and [S', D].

    If both have several seeds, the n-th of one is compared with the n-th of the other. A model with one seed is
    compared with all seeds of the other.
    """
    per_document, names = tuple(map(int, weights)), ("",) * len(weights)
    a, b = (DocumentLosses(tuple(side.mean(axis=0).tolist()), per_document, names) for side in (first, second))
    value, low, high = paired_difference(a, b)
    gaps = (first.sum(axis=1) - second.sum(axis=1)) / sum(per_document)
    p = swap_test(first.mean(axis=0) - second.mean(axis=0))
    return Difference(value, Span(low, high), p, over_seeds(gaps.tolist()), len(per_document))


def over_seeds(values: Sequence[float]) -> Span | None:
    """The 95% interval of the mean by Student's t; None for a single value."""
    count = len(values)
    if count < 2:
        return None
    mean = math.fsum(values) / count
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(stdtrit(count - 1, 0.975)) * deviation / math.sqrt(count)
    return Span(mean - half, mean + half)


def swap_test(gaps: Floats) -> float:
    """p value: how often swapping the two models in random documents gives at least the same gap.

    Args:
        gaps: of the two models' sums, per document [D].
    """
    rng = np.random.default_rng(0)
    # Sums of the same numbers in another order differ by rounding.
    observed = abs(gaps.sum()) - 1e-9 * np.abs(gaps).sum()
    wider, left = 0, SWAPS
    while left:
        count = min(left, max(1, SWAPS_AT_ONCE // len(gaps)))
        signs = rng.integers(0, 2, size=(count, len(gaps)), dtype=np.int8) * 2.0 - 1.0
        wider += int((np.abs(signs @ gaps) >= observed).sum())
        left -= count
    return (1 + wider) / (1 + SWAPS)


def exponential(found: Estimate) -> Estimate:
    """exp of an estimate and of the ends of its intervals."""

    def span(one: Span) -> Span:
        return Span(math.exp(one.low), math.exp(one.high))

    return Estimate(math.exp(found.value), span(found.documents), None if found.seeds is None else span(found.seeds))
