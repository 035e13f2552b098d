"""prune."""

from smolmoe.cli.command import Command
from smolmoe.cli.experts import show_experts
from smolmoe.verbs import convert

COMMAND = Command(convert.prune, show_experts, group="Convert")
