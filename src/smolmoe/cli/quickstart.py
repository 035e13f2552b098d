"""quickstart: all steps on a small example."""

from __future__ import annotations

from smolmoe.cli.command import Command
from smolmoe.cli.run import show_run
from smolmoe.pipeline.quickstart import quickstart

COMMAND = Command(
    quickstart,
    show_run,
    only=("out", "minutes", "seed", "overwrite"),
    as_options=("out",),
)
