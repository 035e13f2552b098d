"""extract."""

from smolmoe.cli.command import Command
from smolmoe.cli.experts import show_experts
from smolmoe.surgery.experts import run

COMMAND = Command(run.extract, show_experts, as_options=("expert",))
