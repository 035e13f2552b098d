"""Axes of a chart: from values to positions, with round ticks and their labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from smolmoe.core import units

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_STEPS = (1, 2, 2.5, 5, 10)
FLAT = 1e-5  # of the values: a smaller range is rounding, which would look like a change


@dataclass(frozen=True)
class Scale:
    """An axis.

    Attributes:
        low, high: values at its ends; `low` may be the greater one.
        start, end: positions of the ends.
        kind: as `Lines.scale`.
    """

    low: float
    high: float
    start: float
    end: float
    kind: str = ""

    def at(self, value: float) -> float:
        """The position of a value."""
        low, high = self._line(self.low), self._line(self.high)
        return self.start + (self._line(value) - low) / ((high - low) or 1) * (self.end - self.start)

    def ticks(self, count: int) -> list[tuple[float, str]]:
        """About `count` round values with their labels."""
        if self.kind == "steps":
            found = [0.0, *(10.0**power for power in range(int(math.log10(max(self.high, 1))) + 1))]
            return [(value, f"{value:g}") for value in found]
        if self.kind:
            return [(value, _short(value)) for value in _decades(self.low, self.high, count)]
        values, step = _round_values(min(self.low, self.high), max(self.low, self.high), count)
        return [(value, _label(value, step)) for value in values]

    def _line(self, value: float) -> float:
        if self.kind == "steps":
            return math.log10(1 + max(value, 0))
        return math.log10(max(value, 1e-12)) if self.kind else value


def room_around(low: float, high: float, share: float) -> float:
    """What an axis adds on either side: a share of the range, more for values that are equal up to rounding."""
    is_flat = high - low <= FLAT * max(abs(low), abs(high))
    return abs(high) * 0.05 or 1.0 if is_flat else (high - low) * share


def _round_values(low: float, high: float, count: int) -> tuple[list[float], float]:
    """Round values between two, and their distance."""
    rough = ((high - low) or 1) / max(count, 1)
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in _STEPS if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [step * place for place in range(first, last + 1)], step


def _decades(low: float, high: float, count: int) -> list[float]:
    """Powers of ten between two values; with 2 and 5 times them if these fit."""
    powers = range(math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9) + 1)
    for factors in ((1, 2, 5), (1,)) if low >= 1e-3 else ((1,),):
        found = [f * 10.0**p for p in powers for f in factors if low * 0.999 <= f * 10.0**p <= high * 1.001]
        if len(found) <= count + 2:
            return found
    return found[:: math.ceil(len(found) / count)]


def _label(value: float, step: float) -> str:
    """A tick with the digits that distinguish it from the next."""
    if step >= 1000:
        return units.count(value) if value else "0"
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    digits += 0 if abs(step * 10**digits - round(step * 10**digits)) < 1e-6 else 1
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def _short(value: float) -> str:
    if value < 1e-3:
        return f"10{str(round(math.log10(value))).translate(_RAISED)}"
    return units.count(value) if value >= 1000 else f"{value:g}"


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions of labels near these places, at least `gap` apart and between two ends, in the same order."""
    order = sorted(range(len(places)), key=lambda at: places[at])
    found = list(places)
    last = low - gap
    for at in order:
        last = found[at] = max(found[at], last + gap)
    last = high + gap
    for at in reversed(order):
        last = found[at] = min(found[at], last - gap)
    return found
