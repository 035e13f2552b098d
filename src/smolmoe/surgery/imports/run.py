"""Import: a source that is no plain dense checkpoint becomes one, in a folder that every other verb takes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from smolmoe.core.checkpoint import Checkpoint, open_checkpoint
from smolmoe.core.config_writer import complete_config
from smolmoe.core.files import expanded, place, write_json
from smolmoe.core.folders import whole_or_nothing, workshop
from smolmoe.core.links import copy_files
from smolmoe.core.model_config import read_config
from smolmoe.core.model_folder import check_output, check_replaceable
from smolmoe.core.provenance import PROVENANCE_FILE, SCHEMA_VERSION, command, origin, versions
from smolmoe.errors import RequestError
from smolmoe.surgery.convert import CARRIED
from smolmoe.surgery.imports.fp8 import write_dequantised
from smolmoe.surgery.imports.gguf import read_types, write_gguf_model
from smolmoe.surgery.imports.text_model import write_text_model
from smolmoe.surgery.tensors.writer import parse_size

SHARD = "5GB"


@dataclass(frozen=True)
class Imported:
    """The result of an import.

    Attributes:
        out: the folder.
        architecture: transformers' class of the result.
        dequantised: number of tensors by the type in which the source stored them, of those that were dequantised.
        copied: the same of those that were floats already (GGUF only).
        dtype: of the result.
        parameters: in the files.
        nbytes: of their tensors.
        seconds: wall time.
    """

    out: Path
    architecture: str
    dtype: str
    parameters: int
    nbytes: int
    seconds: float
    dequantised: dict[str, int] = field(default_factory=dict)
    copied: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "out": str(self.out), "seconds": round(self.seconds, 2)}


def import_model(
    source: str | Path,
    out: str | Path,
    *,
    text_model: bool = False,
    dequantise: bool = False,
    dtype: str | None = None,
    tokenizer: str | None = None,
    revision: str | None = None,
    overwrite: bool = False,
) -> Imported:
    """Write a GGUF file, the text model of a multimodal model, or an fp8 model as a plain checkpoint.

    Args:
        source: a GGUF file, a model folder or a hub id.
        out: folder to write.
        text_model: take the text model of a multimodal model.
        dequantise: multiply fp8 weights by their scales.
        dtype: of dequantised weights.
        tokenizer: folder or hub id of one that replaces a GGUF file's.
        revision: hub revision.
        overwrite: replace an existing model folder.

    Raises:
        SmolmoeError: a subclass with field, value and fix. Nothing incomplete is left.
    """
    start, out = time.monotonic(), Path(out).expanduser()
    file = expanded(str(source))
    is_gguf = file.is_file() and file.suffix == ".gguf"
    if not is_gguf and not text_model and not dequantise:
        raise RequestError(
            "is not a GGUF file, and nothing else was asked for.",
            field="source",
            value=str(source),
            fix="Use `text_model=True` (multimodal) or `dequantise=True` (fp8). A plain checkpoint needs no import.",
        )
    if tokenizer is not None and not is_gguf:
        raise RequestError("replaces only the tokenizer of a GGUF file.", field="tokenizer", value=tokenizer)
    if is_gguf and (text_model or dequantise):
        raise RequestError(
            "a GGUF file is always dequantised, and holds only a text model.",
            field="source",
            value=str(source),
            fix="Leave out `text_model` and `dequantise`.",
        )
    checkpoint = None if is_gguf else open_checkpoint(source, revision=revision)
    folder = file.parent if checkpoint is None else checkpoint.folder
    nbytes = file.stat().st_size if checkpoint is None else sum(t.nbytes for t in checkpoint.tensors.values())
    check_output(out, nbytes, [folder] if checkpoint else [], overwrite=overwrite)
    types: dict[str, int] = {}
    with whole_or_nothing(out, overwrite=overwrite, check=partial(check_replaceable, out, overwrite=overwrite)) as work:
        if checkpoint is None:
            types = read_types(file)[1]
            write_gguf_model(file, work, dtype=dtype, tokenizer=tokenizer, max_shard_size=SHARD)
        else:
            types = _write_plain(checkpoint, work, text_model=text_model, dequantise=dequantise, dtype=dtype)
            copy_files(folder, work, (*CARRIED, "README.md"))
        complete_config(work)
        write_json(
            work / PROVENANCE_FILE,
            {
                "schema_version": SCHEMA_VERSION,
                "stage": "import",
                "request": {"source": str(source), "text_model": text_model, "dequantise": dequantise, "dtype": dtype},
                "source": {"name": str(source), "revision": checkpoint.revision if checkpoint else None},
                "origin": origin(str(source), folder),
                "stored_types": types,
                "versions": versions(),
                "command": command(),
            },
        )
    return _result(out, types, time.monotonic() - start)


@contextmanager
def plain_checkpoint(
    source: str | Path, out: Path, *, revision: str | None, text_model: bool, dequantise: bool
) -> Iterator[Checkpoint]:
    """A source as a plain checkpoint: itself, or while the block runs a temporary one next to `out`.

    Raises:
        SmolmoeError: as `import_model`.
    """
    if not text_model and not dequantise:
        yield open_checkpoint(source, revision=revision)
        return
    checkpoint = open_checkpoint(source, revision=revision)
    with workshop(place(out.with_name(f"{out.name}-dense"))) as room:
        work = room / "dense"
        work.mkdir()
        _write_plain(checkpoint, work, text_model=text_model, dequantise=dequantise, dtype=None)
        copy_files(checkpoint.folder, work, (*CARRIED, "README.md"))
        yield open_checkpoint(work)


def _write_plain(
    checkpoint: Checkpoint, work: Path, *, text_model: bool, dequantise: bool, dtype: str | None
) -> dict[str, int]:
    """Config and weights; of both steps, the first goes to a folder that is removed."""
    types: dict[str, int] = {}
    if not text_model:
        return write_dequantised(checkpoint, work, dtype)
    if dequantise:
        between = work / "dequantised"
        between.mkdir()
        types = write_dequantised(checkpoint, between, dtype)
        checkpoint = open_checkpoint(between)
    write_text_model(checkpoint, work, parse_size(SHARD))
    if dequantise:
        for path in between.iterdir():
            path.unlink()
        between.rmdir()
    return types


def _result(out: Path, types: dict[str, int], seconds: float) -> Imported:
    checkpoint = open_checkpoint(out)
    config = read_config(checkpoint.folder)
    floats = {name: count for name, count in types.items() if name in ("F32", "F16", "BF16")}
    stored = [checkpoint.dtype(name) for name in checkpoint.tensors]
    sizes = [info.nbytes for info in checkpoint.tensors.values()]
    parameters = sum(math.prod(info.shape) for info in checkpoint.tensors.values())
    return Imported(
        out,
        str(config["architectures"][0]),
        max(sorted(set(stored)), key=stored.count),
        parameters,
        sum(sizes),
        seconds,
        {name: count for name, count in types.items() if name not in floats},
        floats,
    )
