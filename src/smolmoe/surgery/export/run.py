"""Export an MoE as another, equivalent native class, or as a GGUF file."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolmoe.core.devices import pick_device
from smolmoe.core.files import locked
from smolmoe.errors import RequestError
from smolmoe.results.verification import failure

if TYPE_CHECKING:
    from smolmoe.core.claim import Claim
    from smolmoe.surgery.experts.moe_files import MoeFiles
    from smolmoe.surgery.export.gguf.run import GgufExport
    from smolmoe.verification.verify import Verification

Report = Callable[[str, int, int], None]
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
    model: str | Path,
    out: str | Path,
    to: str,
    *,
    llama_cpp: str | Path | None = None,
    quant: str | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    dry_run: bool = False,
    report: Report | None = None,
) -> NativeExport | GgufExport:
    """Write an MoE as another MoE class, or as a GGUF file, and compare the result with it.

    Args:
        model: folder or hub id of the MoE.
        out: folder to write; a file for "gguf", whose name ends in .gguf.
        to: a class ("mixtral", "qwen2_moe", ..., "generic") or "gguf".
        llama_cpp: path of llama.cpp's converter; default: the environment variable SMOLMOE_LLAMA_CPP.
        quant: type of a GGUF file: "f32" (default), "f16" or "q8_0".
        device: where the measurement of a native class runs; llama.cpp's runs on the CPU.
        dry_run: report what would be written, but write nothing.

    Raises:
        SmolmoeError: a subclass naming the field, the value and the fix. No incomplete output is left.
        VerificationError: the files do not satisfy the claim; they are kept for inspection.
    """
    from smolmoe.surgery.experts.moe_files import read_moe

    report = report or (lambda stage, done, total: None)
    report("plan", 0, 0)
    files = read_moe(model)
    if to == GGUF:
        from smolmoe.surgery.export.gguf.run import export_gguf

        return export_gguf(
            files,
            Path(out),
            llama_cpp=llama_cpp,
            quant=quant,
            overwrite=overwrite,
            dry_run=dry_run,
            report=report,
        )
    if quant is not None:
        raise RequestError("applies only to GGUF files.", field="quant", value=quant, fix="Use --to gguf.")
    device = pick_device(device)
    return _native(files, Path(out), to, device, overwrite=overwrite, dry_run=dry_run, report=report)


def _native(
    files: MoeFiles, out: Path, to: str, device: str, *, overwrite: bool, dry_run: bool, report: Report
) -> NativeExport:
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
    files: MoeFiles, program: Any, claim: Claim, out: Path, device: str, *, overwrite: bool, report: Report
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
        verification = verify(files.folder, out, claim=claim, device=device)
        record(out, {"measured": verification.to_json()})
    return verification
