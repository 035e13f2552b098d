"""Ship: report on and publish a model. `smolmoe.surgery.export.run` has `export`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from smolmoe.recipe.words import DryRun, Overwrite

if TYPE_CHECKING:
    from smolmoe.hub.push import Push
    from smolmoe.reports.overview import Overview


def report(
    runs: Annotated[
        Sequence[str | Path] | str | Path,
        Field(description="folder of a run, pipeline, model or probe, or a file such as compare.json"),
    ],
    out: Annotated[str | Path, Field(description="output file, a self-contained HTML page")],
    *,
    overwrite: Annotated[bool, Field(description="replacement of another file at the output path")] = False,
) -> Overview:
    """Write one offline HTML page from runs and measurements."""
    from smolmoe.reports.run import report as run

    return run([runs] if isinstance(runs, str | Path) else runs, out, overwrite=overwrite)


def push(
    model: Annotated[str | Path, Field(description="folder of a checkpoint")],
    repo: Annotated[str, Field(description="hub id such as me/my-moe, or file:DIR for a local folder")],
    *,
    private: Annotated[bool, Field(description="private repository, if it is created")] = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> Push:
    """Upload a checkpoint with its model card to the hub."""
    from smolmoe.hub.push import push as run

    return run(model, repo, private=private, dry_run=dry_run, overwrite=overwrite)
