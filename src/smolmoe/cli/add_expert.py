"""add-expert."""

from smolmoe.cli.command import Command
from smolmoe.cli.experts import show_experts
from smolmoe.verbs import convert

COMMAND = Command(convert.add_expert, show_experts, names={"copy_of": ("--from",)}, group="Convert")
