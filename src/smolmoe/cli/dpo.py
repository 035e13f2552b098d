"""align dpo."""

from smolmoe.cli.align import OPTIONS, show_aligned
from smolmoe.cli.command import Command
from smolmoe.verbs import train

COMMAND = Command(train.dpo, show_aligned, only=OPTIONS)
