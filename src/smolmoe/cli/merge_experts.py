"""merge-experts."""

from smolmoe.cli.command import Command
from smolmoe.cli.experts import show_experts
from smolmoe.verbs import convert

COMMAND = Command(convert.merge_experts, show_experts, group="Convert")
