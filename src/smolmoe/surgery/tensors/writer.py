"""Execute a tensor program: from the sources' safetensors to the output's, without a model in memory.

Values that are only copied move from file to file in the kernel and never enter the process. The rest is computed in
float32 one block at a time.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smolmoe.core.checkpoint import DTYPE_CODES, INDEX_FILE, SINGLE_FILE, Checkpoint
from smolmoe.errors import OutputError, RequestError
from smolmoe.surgery.tensors.initialisers import Values
from smolmoe.surgery.tensors.program import Block, OutTensor
from smolmoe.surgery.tensors.values import block_values, filled

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 1 << 24  # bytes; bounds the memory of copies and of casts
Progress = Callable[[int], None]


def parse_size(text: str, field: str = "max_shard_size") -> int:
    """Bytes of "500MB", "5GB" or "1GiB".

    Raises:
        RequestError: not of this form.
    """
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    for unit, factor in units.items():
        if text.upper().endswith(unit):
            with contextlib.suppress(ValueError):
                if (size := int(float(text[: -len(unit)]) * factor)) > 0:
                    return size
    raise RequestError("is not a size.", field=field, value=text, fix="Use a form such as 500MB or 5GB.")


def shard(tensors: Sequence[OutTensor], limit: int) -> list[tuple[str, list[OutTensor]]]:
    """Tensors in files of at most `limit` bytes (a larger tensor gets its own file), under their standard names."""
    groups: list[list[OutTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if groups[-1] and size + tensor.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.nbytes
    if len(groups) == 1:
        return [(SINGLE_FILE, groups[0])]
    return [(f"model-{i:05d}-of-{len(groups):05d}.safetensors", group) for i, group in enumerate(groups, 1)]


def write_tensors(
    folder: Path,
    tensors: Sequence[OutTensor],
    sources: Mapping[str, Checkpoint],
    *,
    seed: int,
    max_shard_bytes: int,
    rows: Mapping[str, Tensor] | None = None,
    progress: Progress = lambda nbytes: None,
) -> None:
    """Write a program's tensors into `folder` as safetensors, with an index if there are several files.

    Copied values never enter the process, so everything is checked beforehand.

    Args:
        rows: values of blocks filled with "rows", by stream.
        progress: called with the number of bytes just written.

    Raises:
        CheckpointError: a source tensor contains NaN or infinity.
    """
    check_sources(tensors, sources)
    shards = shard(tensors, max_shard_bytes)
    values = _Values(sources, seed, rows or {})
    for name, group in shards:
        with open(folder / name, "wb", buffering=0) as out:
            _write_all(out, _header(group))
            for tensor in group:
                for block in tensor.blocks:
                    values.write(out, block, tensor.dtype, progress)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors)},
            "weight_map": {tensor.name: name for name, group in shards for tensor in group},
        }
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def check_sources(tensors: Sequence[OutTensor], sources: Mapping[str, Checkpoint]) -> None:
    """Check that all values a program reads are finite.

    Raises:
        CheckpointError: naming the tensor, its number of non-finite values, and the file.
    """
    for name, checkpoint in sources.items():
        reads = (read for tensor in tensors for block in tensor.blocks for read in block.reads)
        checkpoint.check_finite(read.tensor for read in reads if read.source == name)


def _header(tensors: Sequence[OutTensor]) -> bytes:
    """safetensors' header: its length in 8 bytes, then JSON, padded so that the data starts on a multiple of 8."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.nbytes
        entries[tensor.name] = {
            "dtype": DTYPE_CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def moved_range(block: Block, dtype: str, sources: Mapping[str, Checkpoint]) -> tuple[Path, int, int] | None:
    """(file, offset, bytes) of the source range that equals a block byte for byte; None if it must be computed."""
    changed = block.scale != 1.0 or block.offset or block.order or block.perturb or block.transposed
    changed = changed or block.centred is not None
    if len(block.reads) != 1 or changed:
        return None
    read = block.reads[0]
    checkpoint = sources[read.source]
    info = checkpoint.tensors[read.tensor]
    if checkpoint.dtype(read.tensor) != dtype:
        return None
    if block.span is None:
        return info.file, info.offset, info.nbytes
    if block.axis != 0:
        return None
    row = info.nbytes // info.shape[0]
    return info.file, info.offset + block.span[0] * row, (block.span[1] - block.span[0]) * row


class _Values:
    """Writes blocks: by moving bytes if nothing changes, otherwise through float32."""

    def __init__(self, sources: Mapping[str, Checkpoint], seed: int, rows: Mapping[str, Tensor]):
        self._sources = sources
        self._seed = seed
        self._rows = rows

    def write(self, out: Any, block: Block, dtype: str, progress: Progress) -> None:
        moved = moved_range(block, dtype, self._sources)
        if moved is not None:
            file, offset, nbytes = moved
            _copy_range(file, offset, nbytes, out, progress)
        elif self._row_wise(block):
            for part in _row_chunks(block):
                self._compute(out, part, dtype, progress)
        else:
            self._compute(out, block, dtype, progress)

    @staticmethod
    def _row_wise(block: Block) -> bool:
        """Whether rows can be computed in chunks: nothing is sampled, and each is made from one row of the source."""
        in_place = not block.transposed and block.axis == 0 and block.order is None and block.centred != 0
        return bool(block.reads) and block.perturb is None and in_place

    def _compute(self, out: Any, block: Block, dtype: str, progress: Progress) -> None:
        if block.reads or block.fill == "rows":
            data = _torch_bytes(block_values(block, self._sources, self._seed, self._rows), dtype)
        else:
            data = _numpy_bytes(filled(block, self._seed), dtype)
        _write_all(out, data)
        progress(data.nbytes)


def _torch_bytes(values: Tensor, dtype: str) -> memoryview:
    import torch

    return values.to(getattr(torch, dtype)).contiguous().reshape(-1).view(torch.uint8).numpy().data


def _numpy_bytes(values: Values, dtype: str) -> memoryview:
    """Like `_torch_bytes`, but without torch, which a conversion that only copies does not need otherwise."""
    if dtype != "bfloat16":
        return values.astype(dtype).reshape(-1).view(np.uint8).data
    bits = values.reshape(-1).view(np.uint32)
    # Round to nearest, ties to even: half of the truncated part, minus one if the last kept bit is 0.
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    return rounded.astype(np.uint16).view(np.uint8).data


def _row_chunks(block: Block) -> Iterator[Block]:
    start, stop = block.span or (0, block.shape[0])
    step = max(1, CHUNK // (4 * math.prod(block.shape[1:])))
    for first in range(start, stop, step):
        last = min(first + step, stop)
        yield replace(block, span=(first, last), shape=(last - first, *block.shape[1:]))


def _copy_range(source: Path, offset: int, nbytes: int, out: Any, progress: Progress) -> None:
    with open(source, "rb", buffering=0) as file:
        done = 0
        while done < nbytes:
            count = _copy_some(file.fileno(), offset + done, min(nbytes - done, CHUNK), out)
            if count == 0:
                raise OutputError("the source file ended while it was being copied.", field="source", value=str(source))
            done += count
            progress(count)


def _copy_some(fd: int, offset: int, nbytes: int, out: Any) -> int:
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(fd, out.fileno(), nbytes, offset)
        except OSError as error:  # not between these file systems
            if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
                raise
    data = os.pread(fd, nbytes, offset)
    _write_all(out, data)
    return len(data)


def _write_all(out: Any, data: bytes | memoryview) -> None:
    view = memoryview(data).cast("B")
    while len(view):
        view = view[out.write(view[: 1 << 30]) :]
