"""Export an MoE as a GGUF file: choose a class that llama.cpp supports, convert, run by llama.cpp and measure."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolmoe.core.files import place, write_json, write_text
from smolmoe.core.folders import workshop
from smolmoe.core.json_text import BAD_FILE, read_json
from smolmoe.core.progress import Progress
from smolmoe.core.provenance import command, versions
from smolmoe.core.refusals import writing
from smolmoe.errors import OutputError, RequestError, SourceError, TargetError, VerificationError
from smolmoe.results.gguf import Importance, Order, Placement
from smolmoe.surgery.export.gguf.card import card, is_card
from smolmoe.surgery.export.gguf.engine import available
from smolmoe.surgery.export.gguf.order import order_by_use
from smolmoe.surgery.export.gguf.placement import place_experts
from smolmoe.surgery.export.gguf.quantise import (
    K_QUANTS,
    PROGRAM,
    check_quantiser,
    find_program,
    importance_of,
    odd_rows,
    quantise,
)

if TYPE_CHECKING:
    from smolmoe.surgery.experts.moe_files import MoeFiles
    from smolmoe.surgery.export.gguf.checks import GgufMeasured
    from smolmoe.surgery.export.gguf.converter import Types
    from smolmoe.surgery.export.gguf.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

CONVERTED = ("f32", "f16", "q8_0")  # by the converter; the others are quantised from float32
QUANTS = (*CONVERTED, *K_QUANTS)
KIND, SCHEMA = "gguf-export", 1


@dataclass(frozen=True)
class GgufRequest:
    """What is asked of a GGUF file.

    Attributes:
        quant: one of `QUANTS`.
        importance: text for the importance matrix.
        order_by: text on which expert use is counted, by which the experts are ordered.
        vram: bytes of the GPU for which the file is placed; `context`: tokens (None: the model's own).
    """

    quant: str = "f32"
    importance: str | Path | None = None
    order_by: str | Path | None = None
    vram: int | None = None
    context: int | None = None


@dataclass(frozen=True)
class GgufExport:
    """The result of an export.

    Attributes:
        out: the file; its measurements and its model card are next to it, under the same name with .json and .md.
        architecture: llama.cpp's name for it.
        through: the transformers class that the converter read: the model's own, or an equivalent one.
        `mended`: changes needed for llama.cpp to compute the same function.
        quant: one of `QUANTS`.
        other_types: tensors of two or more dimensions that were written in a different type, by type.
        odd_rows: widths of rows that a K type cannot store, for which llama.cpp uses other types.
        importance: the importance matrix, if there is one.
        order: the order of the experts, if it was changed.
        placement: how much of it fits the given GPU, if one is given.
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
    odd_rows: tuple[int, ...]
    importance: Importance | None
    order: Order | None
    placement: Placement | None
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
            "placement": None if self.placement is None else self.placement.to_json(),
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

    biased = not files.equal_biases
    reasons = {files.kind: reasons_against("llama.cpp", load_config(files.folder).to_dict(), biased=biased)}
    found = None if reasons[files.kind] else files.kind
    if found is None:
        try:
            others = able(subject_of(files))
        except TargetError:
            others = []  # no other class has its attention
        for other in others:
            reasons[other] = reasons_against("llama.cpp", _settings_as(files, other), biased=biased)
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
    request: GgufRequest,
    llama_cpp: str | Path | None,
    overwrite: bool,
    dry_run: bool,
    report: Progress,
) -> GgufExport:
    """Write an MoE as a GGUF file, and measure it with llama.cpp if that is installed.

    Raises:
        RequestError: an option does not fit, the converter was not found, or it failed.
        DataError: a text cannot be read.
        SourceError: a tokenizer without an equivalent in llama.cpp.
        TargetError: a function that llama.cpp cannot compute.
        OutputError: the file exists.
        VerificationError: llama.cpp's output differs; the file is kept for inspection.
    """
    from smolmoe.surgery.export.gguf.converter import find_converter

    start = time.monotonic()
    _check_request(request, files)
    quant = request.quant
    out = out if out.suffix == ".gguf" else out.with_name(f"{out.name}.gguf")
    target = place(out, "file")
    _check_out(out, overwrite=overwrite)
    route = find_route(files)
    vocabulary = _vocabulary(files)
    widths = odd_rows(_widths(files)) if quant in K_QUANTS else ()
    if dry_run:
        _say_what_is_missing(llama_cpp)
        seconds = time.monotonic() - start
        return GgufExport(
            out, route.architecture, route.kind, (), quant, {}, widths, None, None, None, None, {}, seconds, dry_run
        )
    converter = find_converter(llama_cpp)
    program = None if request.importance is None else find_program(llama_cpp)
    # Next to the output: it must be renamed into place, and a machine's temporary folder is often small.
    with writing(out), workshop(target, shown=out) as folder:
        job = _Job(files, request, route, vocabulary, converter, program, folder, report)
        order = job.order()
        staged, changes = job.stage(order)
        written, types, importance = job.convert(staged)
        measured = job.measure(written, order)
        placement = None if request.vram is None else place_experts(written[quant], request.vram, request.context)
        _check_out(out, overwrite=overwrite)  # again: it may have been created in the meantime
        written[quant].replace(target)
    result = GgufExport(
        out,
        route.architecture,
        route.kind,
        tuple(changes),
        quant,
        _other_types(types[quant], K_QUANTS.get(quant, quant.upper())),
        widths,
        importance,
        order,
        placement,
        out.stat().st_size,
        measured,
        time.monotonic() - start,
        dry_run,
    )
    about = {"source": str(files.folder), "versions": versions("llama-cpp-python"), "command": command()}
    write_json(out.with_suffix(".json"), result.to_json() | about)
    write_text(out.with_suffix(".md"), card(result, files.folder.name))
    _check(result)
    return result


def _check_request(request: GgufRequest, files: MoeFiles) -> None:
    if request.quant not in QUANTS:
        raise RequestError(f"must be one of {', '.join(QUANTS)}.", field="quant", value=request.quant)
    if request.quant in K_QUANTS:
        check_quantiser()
    elif request.importance is not None:
        raise RequestError(
            f"only {', '.join(K_QUANTS)} use an importance matrix.", field="importance", value=str(request.importance)
        )
    longest = _context(files)
    if request.context is not None and not 1 <= request.context <= longest:
        raise RequestError(f"must be from 1 to the model's {longest}.", field="context", value=request.context)
    if request.context is not None and request.vram is None:
        raise RequestError("sizes the KV cache for `vram`, which is not given.", field="context", value=request.context)


def _context(files: MoeFiles) -> int:
    """The model's longest text, in tokens."""
    from smolmoe.moe.loading import load_config

    return int(load_config(files.folder).get_text_config().max_position_embeddings)


def _widths(files: MoeFiles) -> Iterator[int]:
    """Lengths of the rows of all matrices, except routers and shared gates, which stay in float32."""
    kept = {name for layer in files.layers.values() for name in (layer.router, layer.shared_gate)}
    for name, info in files.parts.tensors.items():
        if len(info.shape) > 1 and name not in kept:
            yield info.shape[-1]


def _say_what_is_missing(llama_cpp: str | Path | None) -> None:
    """Report in a dry run that the converter was not found; the plan does not depend on it."""
    from smolmoe.surgery.export.gguf.converter import find_converter

    try:
        find_converter(llama_cpp)
    except RequestError as error:
        logger.warning("%s %s", error.message, error.fix)


def _check_out(out: Path, *, overwrite: bool) -> None:
    """Check the file, its measurements and its card: never overwrite a page or JSON file that we did not write."""
    about = out.with_suffix(".json")
    place(about, "file")
    page = out.with_suffix(".md")
    place(page, "file")
    for path in (out, about, page):
        if path.exists() and not overwrite:
            raise OutputError("exists.", field="out", value=str(path), fix="Use `overwrite=True` to replace it.")
    for path, ours in ((about, _kind(about) == KIND), (page, is_card(page))):
        if path.exists() and not ours:
            raise OutputError(
                "was not written by an export; the measurements would overwrite it.",
                field="out",
                value=str(path),
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
    request: GgufRequest
    route: Route
    vocabulary: Vocabulary
    converter: Path
    program: Path | None
    folder: Path
    report: Progress

    def order(self) -> Order | None:
        """The order of the experts by their use on the given text."""
        if self.request.order_by is None:
            return None
        self.report("Counting expert use", 0, 0)
        return order_by_use(self.files, self.request.order_by)

    def stage(self, order: Order | None) -> tuple[Path, list[str]]:
        """The folder the converter reads: the MoE's own, or an adapted copy of another class; and why."""
        from smolmoe.surgery.experts.moe_files import read_moe
        from smolmoe.surgery.experts.subset import permuted
        from smolmoe.surgery.export.gguf_compatibility import adapted
        from smolmoe.surgery.export.native import native_export

        files, said = self.files, []
        if order is not None:
            files = read_moe(self._write(permuted(files, order.experts), "ordered"))
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

        return write_program(
            program, self.files, self.folder / name, stage="export", made={}, granularity=self.files.granularity
        )

    def convert(self, staged: Path) -> tuple[dict[str, Path], dict[str, Types], Importance | None]:
        """The requested file and, if llama.cpp is installed, one in float32, where only the conversion can differ.

        Returns:
            The files and their tensors' types, by type of file, and the importance matrix.
        """
        from smolmoe.surgery.export.gguf.converter import convert

        self.report("llama.cpp's converter", 0, 0)
        quant = self.request.quant
        wanted = dict.fromkeys(("f32", quant) if available() else (quant,))
        out = {outtype: self.folder / f"{outtype}.gguf" for outtype in wanted}
        converted = {outtype: path for outtype, path in out.items() if outtype in CONVERTED}
        types = convert(self.converter, staged, converted, self.vocabulary)
        if quant in CONVERTED:
            return out, types, None
        importance = weights = None
        if self.program is not None and self.request.importance is not None:
            self.report(f"Running {PROGRAM} on the text", 0, 0)
            importance, weights = importance_of(self.program, out["f32"], self.request.importance, _context(self.files))
        self.report(f"Quantising to {quant}", 0, 0)
        types[quant] = quantise(out["f32"], out[quant], quant, weights)
        return out, types, importance

    def measure(self, written: Mapping[str, Path], order: Order | None) -> dict[str, GgufMeasured]:
        if not available():
            return {}
        from smolmoe.surgery.export.gguf.checks import Reference

        self.report("Running transformers for logits and routing", 0, 0)
        reference = Reference.of(self.files.folder)
        found = {}
        for name, path in written.items():
            self.report(f"Running llama.cpp on the file ({name})", 0, 0)
            found[name] = reference.measure(path, exact=name == "f32", order=order)
        return found


def _other_types(types: Mapping[str, str], usual: str) -> dict[str, tuple[str, ...]]:
    """Weights not written in the requested type: routers and norms stay in float32, odd rows cannot be quantised."""
    found: dict[str, tuple[str, ...]] = {}
    for name, kind in types.items():
        if kind != usual and name.endswith(".weight") and "norm" not in name:
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
