"""Carry out a plan: weights, config, tokenizer and provenance, all or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolmoe.core.checkpoint import fingerprint
from smolmoe.core.config_writer import write_config
from smolmoe.core.files import write_json
from smolmoe.core.folders import whole_or_nothing
from smolmoe.core.links import check_files, copy_files
from smolmoe.core.model_code import TOKENIZER_FILES, put_code
from smolmoe.core.model_folder import check_output, check_replaceable
from smolmoe.core.provenance import PROVENANCE_FILE, SCHEMA_VERSION, command, origin, read_provenance, versions
from smolmoe.surgery.plan import Plan
from smolmoe.surgery.shared_neurons import to_hex
from smolmoe.surgery.sources import BASE
from smolmoe.surgery.tensors.tokenizer import keep_tokenizer
from smolmoe.surgery.tensors.writer import Progress, parse_size, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

# Files other than weights and config that a model folder may contain and that remain valid for the MoE.
CARRIED = (
    *TOKENIZER_FILES,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "*.jinja",
    "generation_config.json",
    "LICENSE*",
)


def check_room(plan: Plan) -> None:
    """Reject an output that must not or cannot be written, before any work is done.

    Raises:
        OutputError, RequestError, SourceError
    """
    parse_size(plan.recipe.max_shard_size)
    folders = [source.checkpoint.folder for source in plan.sources.values()]
    check_files(plan.sources[BASE].checkpoint.folder, CARRIED)
    check_output(plan.recipe.out, plan.nbytes, folders, overwrite=plan.recipe.overwrite)


def convert(
    plan: Plan,
    *,
    rows: Mapping[str, Tensor] | None = None,
    router: dict[str, Any] | None = None,
    progress: Progress = lambda nbytes: None,
) -> Path:
    """Write the MoE that a plan describes and return its folder.

    Args:
        plan: from `make_plan`, with its predictions.
        rows: router rows by stream, where the plan asks for them.
        router: the result of router initialisation (domains, predicted load), for the provenance.
        progress: called with the number of bytes just written.

    Raises:
        OutputError: not enough disk space, or the folder cannot be written.
    """
    check_room(plan)
    out, overwrite = plan.recipe.out.absolute(), plan.recipe.overwrite
    sources = {name: source.checkpoint for name, source in plan.sources.items()}
    check = partial(check_replaceable, out, overwrite=overwrite)
    with whole_or_nothing(out, overwrite=overwrite, check=check) as work, ThreadPoolExecutor(1) as beside:
        write_config(work, plan.config)
        # Hashing and loading a tokenizer take as long as moving the weights, which the kernel does for us.
        said = beside.submit(_write_the_rest, plan, work, router)
        write_tensors(
            work,
            plan.tensors,
            sources,
            seed=plan.recipe.seed,
            max_shard_bytes=parse_size(plan.recipe.max_shard_size),
            rows=rows,
            progress=progress,
        )
        said.result()
    return out


def _write_the_rest(plan: Plan, work: Path, router: dict[str, Any] | None) -> None:
    _carry_files(plan, work)
    write_json(work / PROVENANCE_FILE, provenance(plan, router))


def _carry_files(plan: Plan, work: Path) -> None:
    folder = plan.sources[BASE].checkpoint.folder
    copy_files(folder, work, CARRIED)
    keep_tokenizer(folder, work, plan.spec.family, native=plan.target.name != "generic")
    if plan.target.name == "generic":
        put_code(folder, work)


def provenance(plan: Plan, router: dict[str, Any] | None) -> dict[str, Any]:
    """The content of smolmoe.json: the request, its sources, the software used, and the claim."""
    layout = plan.layout
    return {
        "schema_version": SCHEMA_VERSION,
        "stage": "upcycle",
        "request": plan.recipe.model_dump(mode="json", exclude={"out", "overwrite", "verify"}),
        "target": plan.target.name,
        "layout": {
            "experts": layout.experts,
            "top_k": layout.top_k,
            "granularity": layout.granularity,
            "expert_width": layout.width,
            "shared_width": layout.shared_width,
            "moe_layers": list(layout.moe_layers),
            "gate_scale": layout.gate_scale,
            **({"shared_neurons": to_hex(layout.shared_neurons)} if layout.shared_neurons else {}),
        },
        "sources": {
            name: {
                "name": str(plan.recipe.source if name == BASE else plan.recipe.expert[name]),
                "revision": source.checkpoint.revision,
                "sha256": fingerprint(source.checkpoint),
            }
            for name, source in plan.sources.items()
        },
        "origin": _origin(plan),
        "parameters": plan.parameters.to_json(),
        "claim": plan.claim.to_json(),
        "warnings": list(plan.warnings),
        "router": router,
        "verification": None,
        "seed": plan.recipe.seed,
        "versions": versions(),
        "command": command(),
    }


def _origin(plan: Plan) -> dict[str, Any]:
    """The base's licence; unknown if a specialist has a different one."""
    names = {name: str(plan.recipe.source if name == BASE else plan.recipe.expert[name]) for name in plan.sources}
    found = {name: origin(names[name], source.checkpoint.folder) for name, source in plan.sources.items()}
    licences = {values.get("license") for values in found.values()}
    mixed = ("license", "license_name", "license_link") if len(licences) > 1 else ()
    return {key: value for key, value in found[BASE].items() if key not in mixed}


def record_verification(folder: Path, verification: dict[str, Any]) -> None:
    """Add the measured verification to the provenance of a written folder."""
    write_json(folder / PROVENANCE_FILE, read_provenance(folder) | {"verification": verification})
