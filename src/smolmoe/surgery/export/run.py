"""Export an MoE as another, equivalent native class, or as a GGUF file."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from smolmoe.core.devices import pick_device
from smolmoe.core.locks import locked
from smolmoe.core.progress import Progress, silent
from smolmoe.errors import RequestError
from smolmoe.recipe.words import Device, DryRun, Overwrite

if TYPE_CHECKING:
    from smolmoe.core.claim import Claim
    from smolmoe.surgery.experts.moe_files import MoeFiles
    from smolmoe.surgery.export.gguf.run import GgufExport
    from smolmoe.verification.verify import Verification

GGUF = "gguf"
KIND, SCHEMA = "native-export", 1


@dataclass(frozen=True)
class NativeExport:
    """The result of an export.

    Attributes:
        out: the folder written (with dry_run: that would be written).
        source, target: the model types.
        architecture: of the result.
        parameters, nbytes: of the result's tensors.
        claim: for the result, compared with the MoE it was made from.
        verification: of the written files; None with dry_run.
        seconds: wall time.
        dry_run: nothing was written.
    """

    out: Path
    source: str
    target: str
    architecture: str
    parameters: int
    nbytes: int
    claim: Claim
    verification: Verification | None
    seconds: float
    dry_run: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA,
            "kind": KIND,
            **vars(self),
            "out": str(self.out),
            "claim": self.claim.to_json(),
            "verification": None if self.verification is None else self.verification.to_json(),
            "seconds": round(self.seconds, 2),
        }


def export(
    model: Annotated[str | Path, Field(description="folder or hub id of an MoE")],
    out: Annotated[str | Path, Field(description="output folder, or the output file for gguf")],
    to: Annotated[
        str,
        Field(description="name of an MoE class (mixtral, generic, ...) or gguf"),
    ],
    *,
    llama_cpp: Annotated[
        str | Path | None, Field(description="checkout or installation of llama.cpp, for its converter (gguf)")
    ] = None,
    quant: Annotated[
        str | None,
        Field(description="weight type: f32, f16, q8_0, q6_k, q5_k_m or q4_k_m (gguf; default: f32)"),
    ] = None,
    importance: Annotated[
        str | Path | None, Field(description="text for llama.cpp's importance matrix (q6_k, q5_k_m, q4_k_m)")
    ] = None,
    order_by: Annotated[
        str | Path | None, Field(description="text on which expert use is counted: the most used come first (gguf)")
    ] = None,
    vram: Annotated[
        str | None, Field(description="memory of the GPU, e.g. 8GB: how many layers' experts fit it (gguf)")
    ] = None,
    context: Annotated[
        int | None, Field(description="tokens of the KV cache for vram (gguf; default: the model's context)")
    ] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    report: Progress | None = None,
) -> NativeExport | GgufExport:
    """Export an MoE to another class or to GGUF, and verify it.

    Raises:
        SmolmoeError: a subclass naming the field, the value and the fix. No incomplete output is left.
        VerificationError: the files do not satisfy the claim; they are kept for inspection.
    """
    from smolmoe.surgery.experts.moe_files import read_moe
    from smolmoe.surgery.tensors.writer import parse_size

    report = report or silent
    report("plan", 0, 0)
    files = read_moe(model)
    if to == GGUF:
        from smolmoe.surgery.export.gguf.run import GgufRequest, export_gguf

        nbytes = None if vram is None else parse_size(vram, "vram")
        return export_gguf(
            files,
            Path(out),
            request=GgufRequest((quant or "f32").lower(), importance, order_by, nbytes, context),
            llama_cpp=llama_cpp,
            overwrite=overwrite,
            dry_run=dry_run,
            report=report,
        )
    only_gguf = {"quant": quant, "importance": importance, "order_by": order_by, "vram": vram, "context": context}
    for field, value in only_gguf.items():
        if value is not None:
            raise RequestError("applies only to GGUF files.", field=field, value=value, fix="Use `to='gguf'`.")
    device = pick_device(device)
    return _native(files, Path(out), to, device, overwrite=overwrite, dry_run=dry_run, report=report)


def _native(
    files: MoeFiles, out: Path, to: str, device: str, *, overwrite: bool, dry_run: bool, report: Progress
) -> NativeExport:
    from smolmoe.results.verification import failure
    from smolmoe.surgery.experts.writer import check_room
    from smolmoe.surgery.export.native import native_export

    start = time.monotonic()
    program, claim = native_export(files, to)
    verification = None
    check_room(program, files, out, overwrite=overwrite)
    if not dry_run:
        verification = _written(files, program, claim, out, device, overwrite=overwrite, report=report)
    result = NativeExport(
        out,
        files.kind,
        to,
        program.config["architectures"][0],
        program.parameters,
        program.nbytes,
        claim,
        verification,
        time.monotonic() - start,
        dry_run,
    )
    if verification is not None and not verification.passed:
        raise failure(verification.checks, out)
    return result


def _written(
    files: MoeFiles, program: Any, claim: Claim, out: Path, device: str, *, overwrite: bool, report: Progress
) -> Verification:
    """Write the program, verify the files, and record the result in them."""
    from smolmoe.surgery.experts.writer import record, write_program
    from smolmoe.verification.verify import verify

    done = 0

    def progress(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        report("write", done, program.nbytes)

    made = {"said": f"all of a {files.kind}, as another class", "claim": claim.to_json()}
    write_program(
        program,
        files,
        out,
        stage="export",
        made=made,
        granularity=files.granularity,
        overwrite=overwrite,
        progress=progress,
    )
    report("verify", 0, 0)
    with locked(out):  # so that the measured files are the written ones
        verification = verify(files.folder, out, claim=claim, device=device, report=report)
        record(out, {"measured": verification.to_json()})
    return verification
