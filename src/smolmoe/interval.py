"""An estimate, how far it is known, and whether it is a finding: the one rule for every sentence that says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# Documents below which nothing is a finding: even if all of them agree, chance alone does as much in 2 of 2^n cases.
FEWEST_DOCUMENTS = 6
NO_DIFFERENCE = "no difference seen"
Side = Literal["lower", "higher", "none", "few"]


@dataclass(frozen=True)
class Interval:
    """A value, in whatever unit its holder says, with the low and high ends of its 95% interval."""

    value: float
    low: float
    high: float


def side(gap: Interval, documents: int) -> Side:
    """What a difference over documents shows: below 0, above 0, nothing ("none"), or that there are too few ("few")."""
    if documents < FEWEST_DOCUMENTS:
        return "few"
    if gap.low <= 0 <= gap.high:
        return "none"
    return "lower" if gap.high < 0 else "higher"


def is_finding(gap: Interval, documents: int) -> bool:
    """Whether a difference over documents is told from 0."""
    return side(gap, documents) in ("lower", "higher")


def evidence(gap: Interval, documents: int, unit: str = "nats per token") -> str:
    """A difference with its interval and the number of documents behind it."""
    many = f"{documents:,} document{'' if documents == 1 else 's'}"
    return f"{gap.value:+.4f} {unit}, 95% interval [{gap.low:+.4f}, {gap.high:+.4f}] over {many}"


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
