"""An estimate and how far it is known."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A value, in whatever unit its holder says, with the low and high ends of its 95% interval."""

    value: float
    low: float
    high: float
