"""push: a checkpoint and its card to the hub."""

from __future__ import annotations

from smolmoe.cli.command import Command
from smolmoe.cli.output import print_rows
from smolmoe.core import units
from smolmoe.hub.push import Push, push


def show_push(result: Push) -> None:
    """Every file with its size, what was not sent, what was changed, and the address."""
    would = "would be " if result.dry_run else ""
    print(f"{result.model} -> {result.url or result.repo}")
    print_rows([(name, units.size(nbytes)) for name, nbytes in result.files.items()])
    print(f"{len(result.files)} files, {units.size(sum(result.files.values()))}, {would}sent")
    for name, reason in result.refused.items():
        print(f"  not sent: {name} ({reason})")
    for name, reason in result.replaced.items():
        print(f"  {would}changed: {name} ({reason})")
    for file, keys in result.redacted.items():
        shown = ", ".join(keys[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")
        print(f"  absolute paths of this machine {would}shortened to their last part in {file}: {shown}")


COMMAND = Command(push, lambda result, given: show_push(result), doing="Sending the files")
