"""One safetensors file: its header, checked as the safetensors library does, and whether its numbers are finite."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolmoe.core.json_text import parse_json
from smolmoe.errors import CheckpointError

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_LONGEST_HEADER = 100_000_000  # bytes, as in the library
_CHUNK = 1 << 20  # values checked at a time: few enough to stay in the processor's cache
# Integers of the same width, and the bits of infinity: those of NaN, without the sign, are a larger integer.
_EXPONENT = {
    "F16": ("uint16", 0x7C00),
    "BF16": ("uint16", 0x7F80),
    "F32": ("uint32", 0x7F800000),
    "F64": ("uint64", 0x7FF0000000000000),
}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor's bytes are: `offset` from the start of `file`, dtype as safetensors names it (F32, BF16, ...)."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file: they fill it without gap or overlap.

    Raises:
        CheckpointError: truncated, corrupt, or anything else that the safetensors library refuses; the tensor at fault
            is named.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, _LONGEST_HEADER):
            raise _corrupt(path, "truncated or not a safetensors file")
        try:
            header = parse_json(file.read(length))
            if not isinstance(header, dict):
                raise ValueError("it is not a JSON object")
            header.pop("__metadata__", None)
            infos = {name: _tensor_info(path, name, entry, 8 + length) for name, entry in header.items()}
        except ValueError as error:
            raise _corrupt(path, f"corrupt header ({error})") from error
    _check_cover(path, infos, 8 + length, size)
    _ask_library(path)
    return infos


def _corrupt(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{reason}.", field="weights", value=str(path), fix="Download it again.")


def _tensor_info(path: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise ValueError(f"tensor {name!r} has no dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        raise ValueError(f"tensor {name!r}: the dtype is {dtype!r}")
    if not _counts(shape):
        raise ValueError(f"tensor {name!r}: the shape is {shape!r}")
    if not _counts(offsets) or len(offsets) != 2 or offsets[1] < offsets[0]:
        raise ValueError(f"tensor {name!r}: the data_offsets are {offsets!r}")
    begin, end = offsets
    # Unknown widths (fp8, int4 packs) are let through here and refused as quantised where floats are needed.
    if dtype in ITEM_BYTES and end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise ValueError(f"tensor {name!r}: {tuple(shape)} of {dtype} is not {end - begin} bytes")
    return TensorInfo(path, dtype, tuple(shape), data_start + begin, end - begin)


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _check_cover(path: Path, infos: Mapping[str, TensorInfo], start: int, size: int) -> None:
    place, before = start, "the header"
    for name, info in sorted(infos.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if info.offset != place:
            what = "overlaps" if info.offset < place else f"leaves {info.offset - place} bytes unused after"
            raise _corrupt(path, f"corrupt header (tensor {name!r} {what} {before})")
        place, before = place + info.nbytes, f"tensor {name!r}"
    if place != size:
        raise _corrupt(path, f"{'truncated' if place > size else 'too long'}: {size} bytes, its header says {place}")


def _ask_library(path: Path) -> None:
    """What loads these files elsewhere must take them, too: dtypes that it does not know, for example, it does not."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise _corrupt(path, f"the safetensors library refuses it ({error})") from error


def not_finite(data: Any, dtype: str, *, infinite: bool = True) -> int:
    """How many of a tensor's numbers are NaN or infinite; 0 of a dtype that has neither.

    Args:
        data: its bytes, as a one-dimensional array of uint8 or a buffer.
        dtype: as safetensors names it.
        infinite: count infinities; else NaN alone.
    """
    import numpy as np

    if dtype not in _EXPONENT:
        return 0
    name, exponent = _EXPONENT[dtype]
    kind = np.dtype(name).type
    numbers = np.frombuffer(data, dtype=kind)
    magnitude, least = kind(np.iinfo(kind).max >> 1), kind(exponent if infinite else exponent + 1)
    found = 0
    for first in range(0, len(numbers), _CHUNK):
        bits = numbers[first : first + _CHUNK] & magnitude
        if bits.max() >= least:
            found += int((bits >= least).sum())
    return found
