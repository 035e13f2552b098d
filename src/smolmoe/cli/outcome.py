"""How training commands end: what it took, and what to type next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from smolmoe.core import units

if TYPE_CHECKING:
    from smolmoe.results.outcome import Outcome
    from smolmoe.training.folder import RunResult


def took(outcome: Outcome) -> str:
    """E.g. "61.4 K in 12.3 s, 4.98 K tokens/s"."""
    rate = outcome.tokens_per_second
    speed = "" if rate is None else f", {units.tokens(rate)} tokens/s"
    return f"{units.tokens(outcome.tokens)} in {units.duration(outcome.seconds)}{speed}"


def after_run(result: RunResult, *, has_text: bool) -> Iterator[tuple[tuple[object, ...], str]]:
    """The commands that use the model, for `print_next`.

    Args:
        has_text: the run's folder names held-out text, on which models are compared.
    """
    out, source = result.out, result.source
    yield ("generate", result.model, "--prompt", "Once upon a time"), "a text by the model"
    if has_text and source is not None:
        yield ("compare", f"before={source}", f"after={out}", "--data", out), "both models on the held-out text"
    yield ("report", out, "--out", out / "report.html"), "one page on the run"
