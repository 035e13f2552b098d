"""How training commands end: what changed, what it took, and what to type next."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from smolmoe.cli.calling import me
from smolmoe.core import units

if TYPE_CHECKING:
    from smolmoe.results.outcome import Outcome
    from smolmoe.training.folder import RunResult


def took(outcome: Outcome) -> str:
    """E.g. "61.4 K in 12.3 s, 4.98 K tokens/s"."""
    rate = outcome.tokens_per_second
    speed = "" if rate is None else f", {units.tokens(rate)} tokens/s"
    return f"{units.tokens(outcome.tokens)} in {units.duration(outcome.seconds)}{speed}"


def print_next(result: RunResult, *, has_text: bool) -> None:
    """The commands that use the model, ready to copy.

    Args:
        has_text: the run's folder names held-out text, on which models are compared.
    """
    out, source = result.out, result.source
    commands: list[tuple[object, ...]] = [("generate", result.model, "--prompt", "Once upon a time")]
    if has_text and source is not None:
        commands.append(("compare", f"before={source}", f"after={out}", "--data", out))
    commands.append(("report", out, "--out", out / "report.html"))
    print("\nnext:")
    for command in commands:
        print(f"  {me()} {shlex.join(map(str, command))}")
