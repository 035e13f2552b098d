"""Export an MoE as a GGUF file: choose a class that llama.cpp supports, convert, run by llama.cpp and measure."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolmoe.core.files import place, write_json
from smolmoe.core.folders import workshop
from smolmoe.core.json_text import BAD_FILE, read_json
from smolmoe.core.progress import Progress
from smolmoe.core.provenance import command, versions
from smolmoe.core.refusals import writing
from smolmoe.errors import OutputError, RequestError, SourceError, TargetError, VerificationError

if TYPE_CHECKING:
    from smolmoe.surgery.experts.moe_files import MoeFiles
    from smolmoe.surgery.export.gguf.checks import GgufMeasured
    from smolmoe.surgery.export.gguf.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

QUANTS = ("f32", "f16", "q8_0")
KIND, SCHEMA = "gguf-export", 1


@dataclass(frozen=True)
class GgufExport:
    """The result of an export.

    Attributes:
        out: the file; its measurements are next to it, under the same name with .json.
        architecture: llama.cpp's name for it.
        through: the transformers class that the converter read: the model's own, or an equivalent one.
        `mended`: changes needed for llama.cpp to compute the same function.
        quant: "f32", "f16" or "q8_0".
        other_types: tensors of two or more dimensions that were written in a different type, by type.
        nbytes: of the file; None with dry_run.
        measured: type -> llama.cpp's measurement, including the float32 file; empty if it is not installed.
        seconds: wall time.
        dry_run: nothing was written.
    """

    out: Path
    architecture: str
    through: str
    mended: tuple[str, ...]
    quant: str
    other_types: Mapping[str, tuple[str, ...]]
    nbytes: int | None
    measured: Mapping[str, GgufMeasured]
    seconds: float
    dry_run: bool

    @property
    def verified(self) -> bool:
        """Whether llama.cpp has run the file."""
        return bool(self.measured)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA,
            "kind": KIND,
            **asdict(self),
            "out": str(self.out),
            "verified": self.verified,
            "measured": {name: measured.to_json() for name, measured in self.measured.items()},
            "seconds": round(self.seconds, 2),
        }


@dataclass(frozen=True)
class Route:
    """How llama.cpp computes an MoE: as which class, and whether that is the model's own class."""

    kind: str
    own: bool
    own_head: bool
    divides_by_gate: bool
    architecture: str


def find_route(files: MoeFiles) -> Route:
    """The first class that llama.cpp computes correctly: the MoE's own, then equivalent ones.

    Raises:
        TargetError: no such class; states the reason for each.
    """
    from smolmoe.families.engines import reasons_against, support
    from smolmoe.moe.loading import load_config
    from smolmoe.surgery.export.native_forms import able, subject_of

    reasons = {files.kind: reasons_against("llama.cpp", load_config(files.folder).to_dict())}
    found = None if reasons[files.kind] else files.kind
    if found is None:
        try:
            others = able(subject_of(files))
        except TargetError:
            others = []  # no other class has its attention
        for other in others:
            reasons[other] = reasons_against("llama.cpp", _settings_as(files, other))
            if not reasons[other]:
                found = other
                break
    if found is None:
        said = "; ".join(f"{kind}: {', '.join(why)}" for kind, why in reasons.items())
        raise TargetError(
            f"llama.cpp cannot compute this model's function ({said}).",
            field="to",
            value="gguf",
            fix="Serve it with transformers, or with vLLM or SGLang where these run its class.",
        )
    facts = support("llama.cpp", found)
    assert facts is not None
    return Route(found, found == files.kind, facts.own_head, facts.divides_by_gate, facts.name)


def _settings_as(files: MoeFiles, kind: str) -> dict[str, Any]:
    """The settings of the MoE as another class."""
    from smolmoe.surgery.export.native import native_export

    program, _ = native_export(files, kind)
    if program.config["model_type"] == "smolmoe":
        return program.config
    from transformers import AutoConfig

    return dict(AutoConfig.for_model(**program.config).to_dict())


def export_gguf(
    files: MoeFiles,
    out: Path,
    *,
    llama_cpp: str | Path | None,
    quant: str | None,
    overwrite: bool,
    dry_run: bool,
    report: Progress,
) -> GgufExport:
    """Write an MoE as a GGUF file, and measure it with llama.cpp if that is installed.

    Raises:
        RequestError: the converter was not found, or it failed.
        SourceError: a tokenizer without an equivalent in llama.cpp.
        TargetError: a function that llama.cpp cannot compute.
        OutputError: the file exists.
        VerificationError: llama.cpp's output differs; the file is kept for inspection.
    """
    from smolmoe.surgery.export.gguf.converter import find_converter

    start = time.monotonic()
    quant = quant or "f32"
    if quant not in QUANTS:
        raise RequestError(f"must be one of {', '.join(QUANTS)}.", field="quant", value=quant)
    out = out if out.suffix == ".gguf" else out.with_name(f"{out.name}.gguf")
    target = place(out, "file")
    _check_out(out, overwrite=overwrite)
    route = find_route(files)
    vocabulary = _vocabulary(files)
    if dry_run:
        _say_what_is_missing(llama_cpp)
        return GgufExport(
            out, route.architecture, route.kind, (), quant, {}, None, {}, time.monotonic() - start, dry_run
        )
    converter = find_converter(llama_cpp)
    # Next to the output: it must be renamed into place, and a machine's temporary folder is often small.
    with writing(out), workshop(target, shown=out) as folder:
        job = _Job(files, route, vocabulary, converter, folder, report)
        staged, changes = job.stage()
        written, types = job.convert(staged, quant)
        measured = job.measure(written)
        _check_out(out, overwrite=overwrite)  # again: it may have been created in the meantime
        written[quant].replace(target)
    result = GgufExport(
        out,
        route.architecture,
        route.kind,
        tuple(changes),
        quant,
        _other_types(types[quant], quant),
        out.stat().st_size,
        measured,
        time.monotonic() - start,
        dry_run,
    )
    about = {"source": str(files.folder), "versions": versions("llama-cpp-python"), "command": command()}
    write_json(out.with_suffix(".json"), result.to_json() | about)
    _check(result)
    return result


def _say_what_is_missing(llama_cpp: str | Path | None) -> None:
    """Report in a dry run that the converter was not found; the plan does not depend on it."""
    from smolmoe.surgery.export.gguf.converter import find_converter

    try:
        find_converter(llama_cpp)
    except RequestError as error:
        logger.warning("%s %s", error.message, error.fix)


def _check_out(out: Path, *, overwrite: bool) -> None:
    """Check the file and its measurements file: never overwrite a JSON file that we did not write."""
    about = out.with_suffix(".json")
    place(about, "file")
    for path in (out, about):
        if path.exists() and not overwrite:
            raise OutputError("exists.", field="out", value=str(path), fix="Use `overwrite=True` to replace it.")
    if about.exists() and _kind(about) != KIND:
        raise OutputError(
            "was not written by an export; the measurements would overwrite it.",
            field="out",
            value=str(about),
            fix="Choose another name.",
        )


def _kind(path: Path) -> Any:
    try:
        values = read_json(path)
    except BAD_FILE:
        return None
    return values.get("kind") if isinstance(values, dict) else None


def _vocabulary(files: MoeFiles) -> Vocabulary:
    from smolmoe.moe.loading import load_tokenizer
    from smolmoe.surgery.export.gguf.vocabulary import vocabulary_of

    tokenizer = load_tokenizer(files.folder)
    if tokenizer is None:
        raise SourceError(
            "has no tokenizer, which a GGUF file needs.",
            field="model",
            value=str(files.folder),
            fix="Add the tokenizer files to the folder.",
        )
    return vocabulary_of(tokenizer)


@dataclass(frozen=True)
class _Job:
    """One export, in a temporary folder."""

    files: MoeFiles
    route: Route
    vocabulary: Vocabulary
    converter: Path
    folder: Path
    report: Progress

    def stage(self) -> tuple[Path, list[str]]:
        """The folder the converter reads: the MoE's own, or an adapted copy of another class; and why."""
        from smolmoe.surgery.experts.moe_files import read_moe
        from smolmoe.surgery.export.gguf_compatibility import adapted
        from smolmoe.surgery.export.native import native_export

        files, said = self.files, []
        if not self.route.own:
            self.report(f"Writing it as {self.route.kind}, which llama.cpp computes", 0, 0)
            program, claim = native_export(files, self.route.kind)
            files = read_moe(self._write(program, "native"))
            said.append(f"written as {self.route.kind}, which llama.cpp computes: {claim.reason}")
        found = adapted(files, own_head=self.route.own_head, tiny_gates=self.route.divides_by_gate)
        if found is None:
            return files.folder, said
        program, changes = found
        return self._write(program, "adapted"), [*said, *changes]

    def _write(self, program: Any, name: str) -> Path:
        from smolmoe.surgery.experts.writer import write_program

        return write_program(program, self.files, self.folder / name, stage="export", made={})

    def convert(self, staged: Path, quant: str) -> tuple[dict[str, Path], Mapping[str, Mapping[str, str]]]:
        """The requested file and, if llama.cpp is installed, one in float32, where only the conversion can differ."""
        from smolmoe.surgery.export.gguf.converter import convert
        from smolmoe.surgery.export.gguf.engine import available

        self.report("llama.cpp's converter", 0, 0)
        wanted = dict.fromkeys(("f32", quant) if available() else (quant,))
        out = {outtype: self.folder / f"{outtype}.gguf" for outtype in wanted}
        return out, convert(self.converter, staged, out, self.vocabulary)

    def measure(self, written: Mapping[str, Path]) -> dict[str, GgufMeasured]:
        from smolmoe.surgery.export.gguf.engine import available

        if not available():
            return {}
        from smolmoe.surgery.export.gguf.checks import Reference

        self.report("Running transformers for logits and routing", 0, 0)
        reference = Reference.of(self.files.folder)
        found = {}
        for name, path in written.items():
            self.report(f"Running llama.cpp on the file ({name})", 0, 0)
            found[name] = reference.measure(path, exact=name == "f32")
        return found


def _other_types(types: Mapping[str, str], quant: str) -> dict[str, tuple[str, ...]]:
    """Weights not written in the requested type: routers and norms stay in float32, odd rows cannot be quantised."""
    found: dict[str, tuple[str, ...]] = {}
    for name, kind in types.items():
        if kind != quant.upper() and name.endswith(".weight") and "norm" not in name:
            found[kind] = (*found.get(kind, ()), name)
    return found


def _check(result: GgufExport) -> None:
    failed = [check for measured in result.measured.values() for check in _failed(measured.checks)]
    if failed:
        raise VerificationError(
            " ".join(
                f"{check.name}: measured {check.measured:.3g}, limit {check.limit:.3g}; expected: {check.meaning}"
                for check in failed
            ),
            field="out",
            value=str(result.out),
            fix="The file is kept for inspection.",
        )


def _failed(checks: Sequence[Any]) -> list[Any]:
    return [check for check in checks if not check.passed]
