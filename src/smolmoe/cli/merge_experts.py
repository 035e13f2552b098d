"""merge-experts."""

from smolmoe.cli.command import Command
from smolmoe.cli.experts import show_experts
from smolmoe.surgery.experts import run

COMMAND = Command(run.merge_experts, show_experts)
