"""Write a model made from an MoE's files: weights, config, tokenizer and provenance, all or nothing."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from smolmoe.core.checkpoint import fingerprint
from smolmoe.core.claim import Claim
from smolmoe.core.config_writer import write_config
from smolmoe.core.files import write_json
from smolmoe.core.folders import whole_or_nothing
from smolmoe.core.json_text import read_object
from smolmoe.core.links import check_files, copy_files
from smolmoe.core.model_code import put_code
from smolmoe.core.model_config import expert_counts
from smolmoe.core.model_folder import check_output, check_replaceable
from smolmoe.core.provenance import PROVENANCE_FILE, SCHEMA_VERSION, command, read_provenance, versions
from smolmoe.surgery.convert import CARRIED
from smolmoe.surgery.experts.moe_files import MoeFiles
from smolmoe.surgery.experts.subset import Program
from smolmoe.surgery.tensors.tokenizer import drop_code, keep_tokenizer
from smolmoe.surgery.tensors.writer import (
    Progress,
    parse_size,
    write_tensors,
)

SHARD = "5GB"
MADE = "experts"  # the key of smolmoe.json for the experts a model was made from, and how


def check_room(program: Program, files: MoeFiles, out: Path, *, overwrite: bool) -> None:
    """Reject an output that must not or cannot be written, before any work is done.

    Raises:
        OutputError, SourceError
    """
    check_files(files.folder, CARRIED, field="model")
    folders = [files.folder, *{source.folder for source in program.sources.values()}]
    check_output(out, program.nbytes, folders, overwrite=overwrite)


def write_program(
    program: Program,
    files: MoeFiles,
    out: Path,
    *,
    stage: str,
    made: dict[str, Any],
    granularity: int = 1,
    overwrite: bool = False,
    progress: Progress = lambda nbytes: None,
) -> Path:
    """Write a program's tensors and all other files of a model folder; returns the folder.

    Args:
        program: what to write.
        files: the MoE it was made from.
        stage: the command, for the provenance.
        made: the experts, the claim, and its reference.
        granularity: G of the result, if it is an MoE.
        progress: called with the number of bytes just written.

    Raises:
        OutputError: not enough disk space, or the folder cannot be written.
    """
    out = out.absolute()
    check_room(program, files, out, overwrite=overwrite)
    check = partial(check_replaceable, out, overwrite=overwrite)
    with whole_or_nothing(out, overwrite=overwrite, check=check) as work:
        write_config(work, program.config)
        write_tensors(
            work,
            program.tensors,
            program.sources,
            seed=0,
            max_shard_bytes=parse_size(SHARD),
            rows=program.rows,
            progress=progress,
        )
        _carry(files.folder, work, same_class=program.config["model_type"] == files.config["model_type"])
        write_json(work / PROVENANCE_FILE, _provenance(program, files, stage, made, granularity))
    return out


def _carry(folder: Path, work: Path, *, same_class: bool) -> None:
    copy_files(folder, work, CARRIED, field="model")
    is_generic = read_object(work / "config.json")["model_type"] == "smolmoe"
    drop_code(work)
    if not same_class:
        keep_tokenizer(folder, work, None, native=not is_generic)
    if is_generic:
        put_code(folder, work)


def _provenance(
    program: Program, files: MoeFiles, stage: str, made: dict[str, Any], granularity: int
) -> dict[str, Any]:
    count, top_k = expert_counts(program.config) or (None, None)
    before = files.provenance()
    layout = {
        **(before.get("layout") or {}),
        "experts": count,
        "top_k": top_k,
        "granularity": granularity,
    }
    reason = f"Made by `smolmoe {stage}` from another MoE; the claim relative to that MoE is under `{MADE}`."
    return {
        "schema_version": SCHEMA_VERSION,
        "stage": stage,
        "layout": layout if count else None,
        "sources": {
            name: {"name": str(source.folder), "revision": source.revision, "sha256": fingerprint(source)}
            for name, source in program.sources.items()
        },
        "origin": before.get("origin"),
        MADE: made,
        "claim": Claim("none", reason, granularity=granularity).to_json(),
        "verification": None,
        "versions": versions(),
        "command": command(),
    }


def record(out: Path, measured: dict[str, Any]) -> None:
    """Add the measurements to the provenance of a written folder."""
    data = read_provenance(out)
    write_json(out / PROVENANCE_FILE, data | {MADE: data[MADE] | measured})
