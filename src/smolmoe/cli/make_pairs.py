"""align pairs: preference pairs from a model's own answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from smolmoe.cli.command import Command
from smolmoe.cli.output import print_rows, unescaped
from smolmoe.core import units
from smolmoe.verbs import train

if TYPE_CHECKING:
    from smolmoe.alignment.pairs import PairsReport


def show_pairs(result: PairsReport, out: Path) -> None:
    """How many prompts gave a pair, and what the answers are like."""
    short = "" if result.prompts == result.asked else f" (asked for {result.asked}; the data has no more)"
    print(f"{result.pairs} pairs of {result.prompts} prompts{short}: {out / 'pairs.jsonl'}")
    first, second = result.temperatures
    print_rows(
        [
            ("ties", f"{result.ties} at the same distance, {result.same} with two identical answers"),
            ("preferred", f"temperature {first}: {result.wins[0]}, temperature {second}: {result.wins[1]}"),
            ("distance", f"{result.distance_chosen:.1f} characters chosen, {result.distance_rejected:.1f} rejected"),
            ("truncated", f"{result.cut} of {2 * result.prompts} answers"),
            (
                "sampled",
                f"{result.new_tokens} tokens in {units.duration(result.seconds)}, "
                f"{result.tokens_per_second:.0f} per second",
            ),
        ]
    )


COMMAND = Command(
    train.make_pairs,
    lambda result, given: show_pairs(result, given["out"]),
    names={"template": ("--template", "--prompt-template")},
    read={"template": unescaped},
)
