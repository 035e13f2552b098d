"""The variety of a text's tokens: entropy in bits, and relative to texts of similar length.

The plain entropy of n tokens grows with n and favours long documents. Formulas in n overcorrect: no text comes near
log2(n), the maximum for n tokens, and long texts even less; nor does a text reach the entropy of n independent samples
from the corpus, since it repeats its words. Excerpts of n tokens are a fair measure only if short and long texts are of
one kind, which they often are not. So the measure is empirical: the distance of a text's entropy from the regression
line over log(n) through the texts of its group that are nearest in length, in standard deviations. Every text competes
with texts of similar length.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS = 101  # texts to compare a text with, including itself
FEWEST = 30  # a group with fewer texts is compared with all groups

Floats = NDArray[np.float64]


def entropy(ids: Sequence[int] | NDArray[np.int64]) -> float:
    """H = −Σ (c/n)·log2(c/n) over the counts c of n token ids, in bits; 0 of none."""
    counts = np.unique(np.asarray(ids), return_counts=True)[1]
    if len(counts) == 0:
        return 0.0
    shares = counts / counts.sum()
    return max(0.0, -float((shares * np.log2(shares)).sum()))


@dataclass(frozen=True)
class Place:
    """A text of `bits` among its neighbours, which have `mean` ± `deviation` at its length.

    `shortest` and `longest` are the neighbours' lengths in tokens.
    """

    bits: float
    mean: float
    deviation: float
    shortest: int
    longest: int

    @property
    def deviations(self) -> float:
        """Standard deviations above the mean; 0 if the neighbours do not differ."""
        return (self.bits - self.mean) / self.deviation if self.deviation > 1e-6 else 0.0


class Neighbours:
    """Texts sorted by length, with prefix sums for the regression line through any range.

    Args:
        tokens, bits: length and entropy of each text, [N] with N > 0.
    """

    def __init__(self, tokens: NDArray[np.int64], bits: Floats):
        order = np.lexsort((bits, tokens))  # independent of the order of the rows
        self._tokens = tokens[order]
        x = np.log(np.maximum(self._tokens, 1))
        y = bits[order]
        self._centre = float(x.mean()), float(y.mean())  # the sums of squares lose no digits
        x, y = x - self._centre[0], y - self._centre[1]
        self._sums = np.zeros((5, len(x) + 1))
        np.cumsum([x, y, x * x, x * y, y * y], axis=1, out=self._sums[:, 1:])

    def place(self, tokens: int, bits: float) -> Place:
        """The place of a text among those nearest in length."""
        count = min(NEIGHBOURS, len(self._tokens))
        first, last = np.searchsorted(self._tokens, tokens), np.searchsorted(self._tokens, tokens, side="right")
        begin = int(np.clip((first + last) // 2 - count // 2, 0, len(self._tokens) - count))
        x, y, xx, xy, yy = (self._sums[:, begin + count] - self._sums[:, begin]) / count
        spread = xx - x * x
        slope = (xy - x * y) / spread if spread > 1e-9 else 0.0
        at = np.log(max(tokens, 1)) - self._centre[0]
        mean = y + slope * (at - x) + self._centre[1]
        variance = yy - y * y - slope * slope * spread
        shortest, longest = self._tokens[begin], self._tokens[begin + count - 1]
        return Place(bits, float(mean), float(np.sqrt(max(variance, 0.0))), int(shortest), int(longest))


class Measured:
    """The entropies of N texts, each in a group; the texts themselves are not kept."""

    def __init__(self) -> None:
        self.plain = array("d")
        self.tokens = array("q")
        self.groups = array("q")

    def __len__(self) -> int:
        return len(self.plain)

    def add(self, ids: Sequence[int] | NDArray[np.int64], group: int = 0) -> None:
        """Measure a text's token ids."""
        self.plain.append(entropy(ids))
        self.tokens.append(len(ids))
        self.groups.append(group)

    def neighbours(self, group: int) -> Neighbours:
        """The texts of a group, or of all groups if it has too few."""
        mine = np.asarray(self.groups) == group
        if mine.sum() < FEWEST:
            mine[:] = True
        return Neighbours(np.asarray(self.tokens)[mine], np.asarray(self.plain)[mine])

    def normalised(self) -> Floats:
        """Standard deviations above the neighbours, of each text: [N]."""
        groups = np.asarray(self.groups)
        scores = np.zeros(len(self))
        for group in np.unique(groups):
            neighbours = self.neighbours(int(group))
            for index in np.flatnonzero(groups == group):
                scores[index] = neighbours.place(self.tokens[index], self.plain[index]).deviations
        return scores

    def compare(self, ids: Sequence[int], group: int = 0) -> Place:
        """The place of any text in a group."""
        return self.neighbours(group).place(len(ids), entropy(ids))
