"""Reading a checkpoint folder: headers checked, tensors by name or by byte range, nothing held in memory."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolmoe.errors import CheckpointError, HubError, SourceError
from smolmoe.other_formats import check_format, refuse_other_format

if TYPE_CHECKING:
    import torch

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
FLOAT_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
# Some classes have tables of whole numbers among their tensors (DeepSeek-V4: which experts a token goes to).
READABLE = FLOAT_DTYPES | {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}
DTYPE_CODES = {name: code for code, name in FLOAT_DTYPES.items()}
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.pkl", "consolidated*.pth")
# What a hub download needs: no weights in other formats, no training leftovers. The card says the licence.
HUB_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "LICENSE*", "README.md"]
HUB_PATTERNS += ["additional_chat_templates/*"]


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor's bytes are: `offset` from the start of `file`, dtype as safetensors names it (F32, BF16, ...)."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a config and safetensors files, its headers read and checked.

    Attributes:
        folder: where it is.
        tensors: every tensor by its name on disk.
        revision: hub commit it was downloaded at, or None.
    """

    folder: Path
    tensors: dict[str, TensorInfo]
    revision: str | None = None

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """The tensor as stored, or its rows (start, stop), in memory of its own (nothing stays mapped)."""
        import torch

        info = self.tensors[name]
        shape, offset, nbytes = info.shape, info.offset, info.nbytes
        if rows is not None:
            row = info.nbytes // info.shape[0]
            shape, offset, nbytes = (rows[1] - rows[0], *shape[1:]), offset + rows[0] * row, (rows[1] - rows[0]) * row
        data = torch.empty(nbytes, dtype=torch.uint8)
        with open(info.file, "rb", buffering=0) as file:
            file.seek(offset)
            _read_exactly(file, data.numpy().data, name)
        return data.view(getattr(torch, READABLE[info.dtype])).reshape(shape)

    def files(self) -> list[Path]:
        """The weight files, in order of name."""
        return sorted({info.file for info in self.tensors.values()})

    def dtype(self, name: str) -> str:
        """torch's name of a tensor's dtype, e.g. "bfloat16"."""
        return FLOAT_DTYPES[self.tensors[name].dtype]


def open_checkpoint(source: str | Path, *, revision: str | None = None, field: str = "source") -> Checkpoint:
    """Find a checkpoint (a local folder or a hub id) and read its headers.

    Raises:
        SourceError: no such folder, or no config in it.
        CheckpointError: pickled, missing, truncated or corrupt weights, or an index that names absent tensors.
        HubError: a hub id that cannot be fetched.
    """
    folder, commit = _locate(str(source), revision, field)
    check_format(folder, field)
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise SourceError("no config.json in this folder.", field=field, value=str(folder), fix="Name a model folder.")
    try:
        json.loads(config_path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise SourceError(f"config.json is not readable JSON: {error}.", field=field, value=str(config_path)) from error
    return Checkpoint(folder, _read_tensors(folder), commit)


def _locate(source: str, revision: str | None, field: str) -> tuple[Path, str | None]:
    path = Path(source).expanduser()
    if path.is_dir():
        return path.resolve(), None
    if path.is_file():
        raise SourceError(
            "a file, where a model's folder is expected.",
            field=field,
            value=source,
            fix="Give the folder with config.json and *.safetensors.",
        )
    looks_local = source.startswith((".", "/", "~")) or source.count("/") != 1 or path.exists()
    if looks_local:
        raise SourceError(
            "no such model folder.",
            field=field,
            value=source,
            fix="Give a folder with config.json and *.safetensors, or a hub id such as HuggingFaceTB/SmolLM2-135M.",
        )
    return _download(source, revision, field)


def _download(repo: str, revision: str | None, field: str) -> tuple[Path, str | None]:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=HUB_PATTERNS))
    except Exception as error:  # the hub client raises many kinds; each means that the model cannot be had
        raise HubError(
            f"not a local folder, and it could not be fetched from the hub ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else 'no details'}).",
            field=field,
            value=repo,
            fix="Check the name and the network, or download the model elsewhere and give its folder: "
            "`hf download REPO --local-dir DIR`, then use DIR.",
        ) from error
    return folder, folder.name if folder.parent.name == "snapshots" else revision


def _read_tensors(folder: Path) -> dict[str, TensorInfo]:
    index = folder / INDEX_FILE
    if index.is_file():
        return _read_sharded(folder, index)
    if (folder / SINGLE_FILE).is_file():
        return read_header(folder / SINGLE_FILE)
    pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            "the weights are pickled, and unpickling runs whatever code is in the file.",
            field="weights",
            value=pickles[0],
            fix="Use the model's safetensors revision, or convert it once in a place you trust with save_pretrained.",
        )
    refuse_other_format(folder)
    raise CheckpointError(f"no weights: neither {SINGLE_FILE} nor {INDEX_FILE}.", field="weights", value=str(folder))


def _read_sharded(folder: Path, index: Path) -> dict[str, TensorInfo]:
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the index is not readable: {error!r}.", field="index", value=str(index)) from error
    shards: dict[str, dict[str, TensorInfo]] = {}
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name:
            raise CheckpointError("a shard outside the folder.", field="index", value=name)
        if not (folder / name).is_file():
            raise CheckpointError(
                "a shard that the index names is missing.",
                field="shard",
                value=name,
                fix="Download the checkpoint again.",
            )
        shards[name] = read_header(folder / name)
    absent = [tensor for tensor, shard in weight_map.items() if tensor not in shards[shard]]
    if absent:
        raise CheckpointError(
            f"the index names {len(absent)} tensor(s) that its shards do not have.",
            field="index",
            value=absent[0],
            fix="Download the checkpoint again.",
        )
    return {tensor: shards[shard][tensor] for tensor, shard in weight_map.items()}


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, checked against its size.

    Raises:
        CheckpointError: truncated or corrupt.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, 100_000_000):
            raise CheckpointError(
                "truncated or not a safetensors file.", field="weights", value=str(path), fix="Download it again."
            )
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            infos = {name: _tensor_info(path, entry, 8 + length) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"corrupt header ({error}).", field="weights", value=str(path), fix="Download it again."
            ) from error
    end = max((info.offset + info.nbytes for info in infos.values()), default=8 + length)
    if end != size:
        raise CheckpointError(
            f"{'truncated' if end > size else 'too long'}: {size} bytes, its header says {end}.",
            field="weights",
            value=str(path),
            fix="Download it again.",
        )
    return infos


def _tensor_info(path: Path, entry: dict[str, Any], data_start: int) -> TensorInfo:
    begin, end = entry["data_offsets"]
    shape = tuple(int(n) for n in entry["shape"])
    dtype = entry["dtype"]
    # Unknown widths (fp8, int4 packs) are let through here and refused as quantised where floats are needed.
    if dtype in ITEM_BYTES and end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise ValueError(f"{shape} of {dtype} is not {end - begin} bytes")
    if begin < 0 or end < begin:
        raise ValueError(f"offsets {begin}-{end}")
    return TensorInfo(path, dtype, shape, data_start + begin, end - begin)


def _read_exactly(file: Any, view: memoryview, name: str) -> None:
    done = 0
    while done < len(view):
        # One read call moves at most 2 GiB on Linux.
        count = file.readinto(view[done : done + (1 << 30)])
        if not count:
            raise CheckpointError("the file ended inside a tensor.", field="tensor", value=name)
        done += count


def fingerprint(checkpoint: Checkpoint) -> str:
    """sha256 over config and weight files, in order of name."""
    import hashlib

    digest = hashlib.sha256()
    for path in [checkpoint.folder / "config.json", *checkpoint.files()]:
        with open(path, "rb", buffering=0) as file:
            while chunk := file.read(1 << 24):
                digest.update(chunk)
    return digest.hexdigest()
