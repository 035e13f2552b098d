"""Ship: export, report and publish a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from smolmoe.verbs.signature import Device, DryRun, Overwrite, Report

if TYPE_CHECKING:
    from smolmoe.hub.push import Push
    from smolmoe.reports.overview import Overview
    from smolmoe.surgery.export.gguf.run import GgufExport
    from smolmoe.surgery.export.run import NativeExport


def export(
    model: Annotated[str | Path, Field(description="folder or hub id of an MoE")],
    out: Annotated[str | Path, Field(description="output folder, or the output file for gguf")],
    to: Annotated[
        str,
        Field(description="mixtral, granitemoeshared, qwen2_moe, qwen3_moe, glm4_moe, flex_olmo, generic or gguf"),
    ],
    *,
    llama_cpp: Annotated[
        str | Path | None, Field(description="checkout or installation of llama.cpp, for its converter (gguf)")
    ] = None,
    quant: Annotated[str | None, Field(description="weight type: f32, f16 or q8_0 (gguf; default: f32)")] = None,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    report: Report | None = None,
) -> NativeExport | GgufExport:
    """Export an MoE to another class or to GGUF, and verify it."""
    from smolmoe.surgery.export.run import export as run

    options = {"device": device, "overwrite": overwrite, "dry_run": dry_run, "report": report}
    return run(model, out, to, llama_cpp=llama_cpp, quant=quant, **options)  # type: ignore[arg-type]


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
