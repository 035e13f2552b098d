"""How work reports its progress."""

from __future__ import annotations

from collections.abc import Callable

# Called with the name of the step, the amount done, and the total amount (0 if unknown).
Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Progress that is not shown."""
