"""quickstart: the whole way on a small example."""

from __future__ import annotations

from smolmoe.cli.command import Command
from smolmoe.cli.run import show_run
from smolmoe.verbs import train

COMMAND = Command(
    train.quickstart,
    show_run,
    only=("out", "minutes", "seed", "overwrite"),
    as_options=("out",),
)
