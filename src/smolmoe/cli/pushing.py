"""push: a checkpoint and its card to the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smolmoe.cli.output import Json, print_json, print_rows, quiet_libraries
from smolmoe.core import units

if TYPE_CHECKING:
    from smolmoe.hub.push import Push


def add_to(app: typer.Typer) -> None:
    app.command()(push)


def push(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a checkpoint.")],
    repo: Annotated[
        str, typer.Argument(metavar="REPO", help="Hub id such as me/my-moe, or file:DIR for a folder of the same form.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private, where it is made.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model folder at file:DIR.")] = False,
    as_json: Json = False,
) -> None:
    """Send a checkpoint with its model card to the hub: weights, config, tokenizer and provenance, nothing else."""
    quiet_libraries()
    from smolmoe.hub.push import push as send

    result = send(model, repo, private=private, dry_run=dry_run, overwrite=overwrite)
    if as_json:
        print_json(result.to_json())
    else:
        show_push(result)


def show_push(result: Push) -> None:
    """Every file with its size, what stayed, what was cut, and where it went."""
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
        print(f"  absolute paths of this machine {would}cut to their last part in {file}: {shown}")
