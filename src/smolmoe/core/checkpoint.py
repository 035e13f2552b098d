"""Reading a checkpoint folder: headers checked, tensors by name or by byte range, nothing held in memory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolmoe.core.files import expanded
from smolmoe.core.hub_access import why_not
from smolmoe.core.json_text import read_object
from smolmoe.core.links import check_files
from smolmoe.core.model_config import check_other_files, read_config
from smolmoe.core.other_formats import check_format, refuse_other_format
from smolmoe.core.safetensors_file import TensorInfo, not_finite, read_header
from smolmoe.errors import CheckpointError, HubError, SourceError

if TYPE_CHECKING:
    import torch

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
FLOAT_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
# Some classes have integer tables among their tensors (DeepSeek-V4: the experts of each token id).
READABLE = FLOAT_DTYPES | {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}
DTYPE_CODES = {name: code for code, name in FLOAT_DTYPES.items()}
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.pkl", "consolidated*.pth")
# What a hub download needs: no weights in other formats, no training leftovers. The card says the licence.
HUB_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "LICENSE*", "README.md"]
HUB_PATTERNS += ["additional_chat_templates/*"]
_CHUNK = 1 << 24  # bytes; a multiple of every dtype's size
# An expert is switched off by a selection bias of minus infinity.
_MAY_BE_INFINITE = ("e_score_correction_bias", "expert_bias")


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

    def read(self, name: str, rows: tuple[int, int] | None = None, *, finite: bool = True) -> torch.Tensor:
        """The tensor as stored, or its rows (start, stop), in separate memory (nothing stays mapped).

        Raises:
            CheckpointError: the file ended, or what was read holds NaN or infinity and `finite` asks for neither.
        """
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
        tensor = data.view(getattr(torch, READABLE[info.dtype])).reshape(shape)
        if finite and (count := self.count_not_finite(tensor, name)):
            raise self._not_finite(name, count)
        return tensor

    def count_not_finite(self, tensor: torch.Tensor, name: str) -> int:
        """How many numbers of a tensor, as `read` returned it, are NaN or infinite."""
        import torch

        data = tensor.reshape(-1).view(torch.uint8).numpy()
        return not_finite(data, self.tensors[name].dtype, infinite=_infinite_counts(name))

    def not_finite(self, names: Iterable[str] | None = None) -> dict[str, int]:
        """Tensors (of these names, or all) that hold NaN or infinity, and how many of each."""
        buffer = bytearray(_CHUNK)
        found: dict[str, int] = {}
        for name in self.tensors if names is None else dict.fromkeys(names):
            info, count = self.tensors[name], 0
            with open(info.file, "rb", buffering=0) as file:
                file.seek(info.offset)
                for done in range(0, info.nbytes, _CHUNK):
                    part = memoryview(buffer)[: min(_CHUNK, info.nbytes - done)]
                    _read_exactly(file, part, name)
                    count += not_finite(part, info.dtype, infinite=_infinite_counts(name))
            if count:
                found[name] = count
        return found

    def check_finite(self, names: Iterable[str] | None = None) -> None:
        """See that tensors (of these names, or all) hold numbers only; every byte of them is read.

        Raises:
            CheckpointError: naming the first that holds NaN or infinity, and how many others do.
        """
        found = self.not_finite(names)
        if found:
            name, count = next(iter(found.items()))
            raise self._not_finite(name, count, others=len(found) - 1)

    def describe_not_finite(self, name: str, count: int) -> str:
        """Which numbers of which file are none, in words."""
        info = self.tensors[name]
        return f"{count:,} of its {math.prod(info.shape):,} values in {info.file.name} are NaN or infinite"

    def _not_finite(self, name: str, count: int, others: int = 0) -> CheckpointError:
        more = f" The same holds for {others} other tensors." if others else ""
        return CheckpointError(
            f"{self.describe_not_finite(name, count)}.{more}",
            field="tensor",
            value=name,
            fix="Go back to the last good checkpoint, or download it again.",
        )

    def files(self) -> list[Path]:
        """The weight files, in order of name."""
        return sorted({info.file for info in self.tensors.values()})

    def dtype(self, name: str) -> str:
        """torch's name of a tensor's dtype, e.g. "bfloat16"."""
        return FLOAT_DTYPES[self.tensors[name].dtype]


def open_checkpoint(source: str | Path, *, revision: str | None = None, field: str = "source") -> Checkpoint:
    """Find a checkpoint (a local folder, the folder of the run that wrote it, or a hub id) and read its headers.

    Raises:
        SourceError: no such folder, no config in it, or a link in it that leads out of it.
        CheckpointError: pickled, missing, truncated or corrupt weights, or an index that names absent tensors.
        HubError: a hub id that cannot be fetched.
    """
    folder, commit = _locate(str(source), revision, field)
    check_files(folder, field=field)
    check_format(folder, field)
    config = read_config(folder, field)
    check_other_files(folder, config)
    tensors = _read_tensors(folder)
    layers = config.get("num_hidden_layers", config.get("n_layer", 0))
    if layers > len(tensors):  # building so many would take too long
        raise SourceError(
            f"in config.json: there are only {len(tensors)} tensors for all of them.",
            field="num_hidden_layers",
            value=layers,
            fix="Weights and config.json must come from the same model.",
        )
    return Checkpoint(folder, tensors, commit)


def _locate(source: str, revision: str | None, field: str) -> tuple[Path, str | None]:
    path = expanded(source)
    if path.is_dir():
        is_run = (path / "run.json").is_file() and not (path / "config.json").is_file()
        return (path / "model" if is_run and (path / "model").is_dir() else path).resolve(), None
    if path.is_file():
        raise SourceError(
            "is a file, not a model folder.",
            field=field,
            value=source,
            fix="Use the folder with config.json and *.safetensors.",
        )
    looks_local = source.startswith((".", "/", "~")) or source.count("/") != 1 or path.exists()
    if looks_local:
        raise SourceError(
            "no such model folder.",
            field=field,
            value=source,
            fix="Use a folder with config.json and *.safetensors, or a hub id such as HuggingFaceTB/SmolLM2-135M.",
        )
    return _download(source, revision, field)


def _download(repo: str, revision: str | None, field: str) -> tuple[Path, str | None]:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=HUB_PATTERNS))
    except Exception as error:  # the hub client raises many kinds; each means that the model cannot be had
        reason, fix = why_not(error)
        raise HubError(
            f"not a local folder, and not available from the hub: {reason}.",
            field=field,
            value=repo,
            fix=f"{fix} Or download the model elsewhere and use its folder: `hf download REPO --local-dir DIR`.",
        ) from error
    return folder, folder.name if folder.parent.name == "snapshots" else revision


def _read_tensors(folder: Path) -> dict[str, TensorInfo]:
    # In this order, as transformers looks for them.
    if (folder / SINGLE_FILE).is_file():
        return read_header(folder / SINGLE_FILE)
    if (folder / INDEX_FILE).is_file():
        return _read_sharded(folder, folder / INDEX_FILE)
    pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            "the weights are pickled, and unpickling can run arbitrary code.",
            field="weights",
            value=pickles[0],
            fix="Use the model's safetensors revision, or convert it once in a place you trust with save_pretrained.",
        )
    refuse_other_format(folder)
    raise CheckpointError(f"no weights: neither {SINGLE_FILE} nor {INDEX_FILE}.", field="weights", value=str(folder))


def _read_sharded(folder: Path, index: Path) -> dict[str, TensorInfo]:
    weight_map = _weight_map(index)
    shards: dict[str, dict[str, TensorInfo]] = {}
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name:
            raise _bad_index(index, f"names the shard {name!r}, which lies outside the folder")
        if not (folder / name).is_file():
            raise CheckpointError(
                "a shard listed in the index is missing.",
                field="shard",
                value=name,
                fix="Download the checkpoint again.",
            )
        shards[name] = read_header(folder / name)
    owner: dict[str, str] = {}
    for shard, tensors in shards.items():
        for tensor in tensors:
            if tensor in owner:
                raise _bad_index(index, f"tensor {tensor} is in two shards, {owner[tensor]} and {shard}")
            owner[tensor] = shard
    # What transformers loads is all that the shards hold, whatever the index says: both must be the same.
    for tensor, shard in weight_map.items():
        if owner.get(tensor) != shard:
            raise _bad_index(index, f"lists tensor {tensor} in {shard}, which does not contain it")
    for tensor, shard in owner.items():
        if tensor not in weight_map:
            raise _bad_index(index, f"does not list tensor {tensor}, which {shard} contains")
    return {tensor: shards[shard][tensor] for tensor, shard in weight_map.items()}


def _weight_map(index: Path) -> dict[str, str]:
    values = read_object(index, fix="Download it again.")
    if not isinstance(values.get("metadata", {}), dict):
        raise _bad_index(index, f"its metadata are {values['metadata']!r}, not an object")
    found = values.get("weight_map")
    if not isinstance(found, dict) or not found:
        raise _bad_index(index, "has no weight_map from tensors to shards")
    for tensor, shard in found.items():
        if not isinstance(shard, str):
            raise _bad_index(index, f"gives {shard!r} as the shard of tensor {tensor}, not a file's name")
    return found


def _bad_index(index: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{reason}.", field="index", value=str(index), fix="Download the checkpoint again.")


def _infinite_counts(name: str) -> bool:
    return not name.endswith(_MAY_BE_INFINITE)


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
