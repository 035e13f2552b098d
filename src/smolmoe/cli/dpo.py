"""align dpo."""

from smolmoe.cli.align import OPTIONS, show_aligned, show_estimate
from smolmoe.cli.command import Command
from smolmoe.verbs import train

COMMAND = Command(train.dpo, show_aligned, show_estimate, only=OPTIONS)
