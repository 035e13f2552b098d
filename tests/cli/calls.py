"""The `smolmoe` command, called in the tests' own process: starting another takes longer than most commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Done(NamedTuple):
    """How a command exited, and what it printed where."""

    code: int
    out: str
    err: str


Call = Callable[..., Done]
