"""align cpo."""

from smolmoe.cli.align import OPTIONS, show_aligned
from smolmoe.cli.command import Command
from smolmoe.verbs import train

COMMAND = Command(train.cpo, show_aligned, only=OPTIONS)
