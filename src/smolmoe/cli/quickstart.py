"""quickstart: the whole way on a small example."""

from __future__ import annotations

from smolmoe.cli.command import Command
from smolmoe.verbs import train

COMMAND = Command(
    train.quickstart,
    lambda result, given: print(result.text()),
    as_options=("out",),
    exit_code=lambda result, given: 0 if result.verified else 1,
    group="Convert",
)
