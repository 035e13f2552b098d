"""extract."""

from smolmoe.cli.command import Command
from smolmoe.cli.experts import show_experts
from smolmoe.verbs import convert

COMMAND = Command(convert.extract, show_experts, as_options=("expert",), group="Convert")
