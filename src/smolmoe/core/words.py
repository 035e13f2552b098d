"""Pieces of sentences that many messages share."""

from __future__ import annotations

from collections.abc import Sequence


def first_line(error: Exception) -> str:
    """What an error says, without the lines that follow and without a full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def listed(items: Sequence[object]) -> str:
    """E.g. "a, b and c"."""
    names = list(map(str, items))
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
