"""route: the named expert for a prompt."""

from __future__ import annotations

import sys

from smolmoe.cli.command import Command, Given
from smolmoe.cli.output import print_rows
from smolmoe.core import units
from smolmoe.inference.expert_choice import Choice, route


def show_choice(choice: Choice, given: Given) -> None:
    """The expert, its confidence, and the shares of all."""
    print(f"{choice.name}, confidence {choice.confidence:.0%}")
    print_rows([(name, f"{share:.1%}") for name, share in choice.shares.items()])
    read, total = units.size(choice.bytes.read), units.size(choice.bytes.total)
    print(f"{choice.tokens} tokens, {read} of {total} read, {units.duration(choice.seconds)}", file=sys.stderr)


COMMAND = Command(route, show_choice, doing="Reading the router")
