"""Pieces of sentences that many messages share."""

from __future__ import annotations

from collections.abc import Sequence


def first_line(error: Exception) -> str:
    """The first line of an error's text, without its full stop; and the second if the first ends in a colon."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return (" ".join(lines[:2]) if lines[0].endswith(":") else lines[0]).rstrip(".")


def listed(items: Sequence[object]) -> str:
    """E.g. "a, b and c"."""
    names = list(map(str, items))
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
