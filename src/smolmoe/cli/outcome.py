"""How training commands end: what changed, what it took, and what to type next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smolmoe.core import units

if TYPE_CHECKING:
    from smolmoe.results.outcome import Outcome


def took(outcome: Outcome) -> str:
    """E.g. "61.4 K in 12.3 s, 4.98 K tokens/s"."""
    rate = outcome.tokens_per_second
    speed = "" if rate is None else f", {units.tokens(rate)} tokens/s"
    return f"{units.tokens(outcome.tokens)} in {units.duration(outcome.seconds)}{speed}"


def print_next(outcome: Outcome) -> None:
    """The commands that use the model, ready to copy."""
    print("\nnext:")
    for command in outcome.next:
        print(f"  {command}")
