"""An estimate, its interval, and whether it is a finding: one rule for all sentences, and one bootstrap."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# Documents below which nothing is a finding: even if all of them agree, chance alone does as much in 2 of 2^n cases.
FEWEST_DOCUMENTS = 6
# Of a loss: what the four digits shown call 0 is rounding, however sure its sign is.
SMALLEST = 5e-5
# An expert that should have got this many tokens but got none is no accident; below, no load is reported.
ENOUGH_TOKENS = 16
NO_DIFFERENCE = "no difference seen"
Side = Literal["lower", "higher", "none", "few"]


@dataclass(frozen=True)
class Interval:
    """A value with the low and high ends of its 95% interval."""

    value: float
    low: float
    high: float

    def turned(self) -> Interval:
        """The interval of the negated difference."""
        return Interval(-self.value, -self.high, -self.low)


def resample(count: int, draws: int, rng: np.random.Generator) -> Floats:
    """How often each of `count` documents is in each bootstrap sample, [draws, count]."""
    import numpy as np

    return rng.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)


def ends(samples: Floats) -> Floats:
    """The ends of the 95% interval of bootstrap samples [draws, ...], as [2, ...]."""
    import numpy as np

    return np.asarray(np.percentile(samples, [2.5, 97.5], axis=0))


def enough_tokens(tokens: float, top_k: int, experts: int) -> bool:
    """Whether so many tokens say anything of which experts are reached."""
    return tokens * top_k / experts >= ENOUGH_TOKENS


def least_share(share: float, count: int, comparisons: int = 1) -> float:
    """The low end of the 95% interval (Wilson's) of a share that was seen in so many.

    Args:
        comparisons: shares that are judged at once; the interval is wider by Bonferroni's correction.
    """
    z = 1.96 if comparisons == 1 else NormalDist().inv_cdf(1 - 0.025 / comparisons)
    middle = share + z * z / (2 * count)
    return (middle - z * (share * (1 - share) / count + z * z / (4 * count**2)) ** 0.5) / (1 + z * z / count)


def above_chance(beyond: int, of: int, level: float = 0.05) -> bool:
    """Whether so many of so many figures beyond the 95th percentile of chance are more than chance leaves there."""
    tail = sum(math.comb(of, k) * level**k * (1 - level) ** (of - k) for k in range(beyond, of + 1))
    return tail <= level + 1e-9


def side(gap: Interval, documents: int) -> Side:
    """What a difference over documents shows: below 0, above 0, nothing ("none"), or that there are too few ("few")."""
    if documents < FEWEST_DOCUMENTS:
        return "few"
    if gap.low <= 0 <= gap.high or abs(gap.value) < SMALLEST:
        return "none"
    return "lower" if gap.high < 0 else "higher"


def evidence(gap: Interval, documents: int, unit: str = "nats per token") -> str:
    """A difference with its interval and the number of documents behind it."""
    return f"{signed(gap.value)} {unit}, 95% interval [{signed(gap.low)}, {signed(gap.high)}] over {many(documents)}"


def shortly(gap: Interval, documents: int) -> str:
    """The same for a list of domains."""
    return f"{signed(gap.value)} [{signed(gap.low)}, {signed(gap.high)}], {many(documents)}"


def signed(value: float) -> str:
    """With four digits; a rounded 0 has no sign."""
    shown = f"{value:+.4f}"
    return shown[1:] if float(shown) == 0 else shown


def many(documents: int) -> str:
    return f"{documents:,} document{'' if documents == 1 else 's'}"


def no_finding(gap: Interval, documents: int, unit: str = "nats per token") -> str | None:
    """Why a difference is no finding, in words; None where it is one."""
    found = side(gap, documents)
    if found in ("lower", "higher"):
        return None
    reason = NO_DIFFERENCE if found == "none" else f"too few documents for a finding (at least {FEWEST_DOCUMENTS})"
    return f"{reason}: {evidence(gap, documents, unit)}"


def too_few(documents: Mapping[str, int]) -> str | None:
    """Why nothing can be found on so many documents of each domain; None where there are enough of all."""
    few = {domain: count for domain, count in documents.items() if count < FEWEST_DOCUMENTS}
    if not few:
        return None
    said = ", ".join(f"{domain} {count}" for domain, count in few.items())
    return f"too few documents for a finding ({said}; at least {FEWEST_DOCUMENTS} of each domain)"
