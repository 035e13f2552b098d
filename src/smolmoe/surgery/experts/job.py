"""Shared by extract, prune, merge-experts and add-expert: reading, writing, measuring, the result."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolmoe.core.claim import Claim
from smolmoe.core.locks import locked
from smolmoe.core.model_config import expert_counts
from smolmoe.core.progress import Progress, silent

if TYPE_CHECKING:
    from smolmoe.surgery.experts.measure import Losses, Measured, Split
    from smolmoe.surgery.experts.moe_files import MoeFiles
    from smolmoe.surgery.experts.subset import Program

Available = Mapping[int, tuple[int, ...]]


@dataclass(frozen=True)
class Size:
    """Total parameters, active parameters per token, and bytes of the tensors on disk."""

    parameters: int
    active: int
    nbytes: int


@dataclass(frozen=True)
class ExpertResult:
    """The result of a command.

    Attributes:
        stage: "extract", "prune", "merge-experts" or "add-expert".
        out: the folder written (with dry_run: that would be written).
        architecture: of the result.
        said: the experts, described in one line.
        before, after: sizes.
        claim: for the result, compared with the MoE it was made from.
        measured: on the written files; None with dry_run.
        losses: held-out, before and after, if data were given.
        seconds: wall time.
        dry_run: nothing was written.
    """

    stage: str
    out: Path
    architecture: str
    said: str
    before: Size
    after: Size
    claim: Claim
    measured: Measured | None
    losses: Losses | None
    seconds: float
    dry_run: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "out": str(self.out),
            "dry_run": self.dry_run,
            "architecture": self.architecture,
            "experts": self.said,
            "before": vars(self.before),
            "after": vars(self.after),
            "claim": self.claim.to_json(),
            "measured": None if self.measured is None else self.measured.to_json(),
            "losses": None if self.losses is None else self.losses.to_json(),
            "seconds": round(self.seconds, 2),
        }


@dataclass(frozen=True)
class Job:
    """One run of a command: its input, its output, and the final steps that all commands share."""

    stage: str
    files: MoeFiles
    out: Path
    device: str
    overwrite: bool
    dry_run: bool
    report: Progress
    start: float

    @classmethod
    def begin(
        cls,
        stage: str,
        model: str | Path,
        out: str | Path,
        device: str,
        overwrite: bool,
        dry_run: bool,
        report: Progress | None,
    ) -> Job:
        from smolmoe.core.devices import pick_device
        from smolmoe.core.links import check_files
        from smolmoe.core.model_folder import check_output
        from smolmoe.surgery.convert import CARRIED
        from smolmoe.surgery.experts.moe_files import read_moe

        start = time.monotonic()
        report = report or silent
        report("plan", 0, 0)
        files = read_moe(model)
        check_files(files.folder, CARRIED, field="model")
        check_output(Path(out), 0, [files.folder], overwrite=overwrite)
        device = pick_device(device)
        files.checkpoint.check_finite()  # all of it: removed experts are part of the reference, too
        return cls(stage, files, Path(out), device, overwrite, dry_run, report, start)

    def split(self, data: str | Path | None) -> Split | None:
        from smolmoe.surgery.experts.measure import split_data

        return None if data is None else split_data(self.files, data)

    def finish(
        self,
        program: Program,
        claim: Claim,
        said: str,
        *,
        available: Available | None = None,
        split: Split | None = None,
        granularity: int = 1,
        made: Mapping[str, Any] | None = None,
    ) -> ExpertResult:
        """Write a program, and measure the result against the MoE and on held-out text.

        Raises:
            OutputError: not enough disk space, or the folder cannot be written.
            VerificationError: the files do not satisfy the claim; they are kept for inspection.
        """
        from smolmoe.hub.card_writer import finish_model
        from smolmoe.results.verification import failure
        from smolmoe.surgery.tensors.writer import check_sources

        measured = found = None
        if not self.dry_run:
            self._write(program, {"said": said, **(made or {}), "claim": claim.to_json()}, granularity)
            with locked(self.out):  # so that the measured files are the written ones
                measured, found = self._measure(claim, available, split)
        else:  # writing checks them itself
            check_sources(program.tensors, program.sources)
        before = _size(self.files.checkpoint_size(), self.files.experts, self.files.top_k)
        after = _size(_counts(program), *_experts(program.config))
        if measured is not None:
            sizes = {"total": after.parameters, "active": after.active}
            finish_model(self.out, {"parameters": sizes})
        result = ExpertResult(
            self.stage,
            self.out,
            program.config["architectures"][0],
            said,
            before,
            after,
            claim,
            measured,
            found,
            time.monotonic() - self.start,
            self.dry_run,
        )
        if measured is not None and not measured.passed:
            raise failure(measured.checks, self.out)
        return result

    def _write(self, program: Program, made: dict[str, Any], granularity: int) -> None:
        from smolmoe.surgery.experts.writer import write_program

        done = 0

        def progress(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            self.report("write", done, program.nbytes)

        write_program(
            program,
            self.files,
            self.out,
            stage=self.stage,
            made=made,
            granularity=granularity,
            overwrite=self.overwrite,
            progress=progress,
        )

    def _measure(
        self, claim: Claim, available: Available | None, split: Split | None
    ) -> tuple[Measured, Losses | None]:
        from smolmoe.surgery.experts.measure import Losses, losses, measure
        from smolmoe.surgery.experts.writer import record

        self.report("verify", 0, 0)
        measured = measure(self.files, self.out, claim, available, self.device)
        found = None
        if split is not None:
            before, after = (losses(folder, split.losses, self.device) for folder in (self.files.folder, self.out))
            found = Losses(before, after)
        record(self.out, {"measured": measured.to_json(), "losses": None if found is None else found.to_json()})
        return measured, found


def _counts(program: Program) -> tuple[int, int, int]:
    experts = sum(tensor.size for tensor in program.tensors if tensor.role == "expert")
    return program.parameters, experts, program.nbytes


def _size(counts: tuple[int, int, int], experts: int, top_k: int) -> Size:
    total, routed, nbytes = counts
    return Size(total, total - routed * (experts - top_k) // experts, nbytes)


def _experts(config: Mapping[str, Any]) -> tuple[int, int]:
    """E and K of a config; 1 and 1 for a dense one."""
    return expert_counts(config) or (1, 1)
