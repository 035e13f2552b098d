"""Large tensors in large pages, and memory that is reused.

A fresh tensor beyond glibc's largest heap block (32 MB) is mapped newly, and the kernel clears it page by page as it is
first written, which can take several times as long as the writing.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from collections.abc import Callable, Sequence
from functools import cache

import torch

HUGE_PAGE = 2**21
LARGEST_BLOCK = 2**25  # of glibc's heap


def empty(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """An uninitialised tensor on the CPU; a large one requests huge pages if the system has them."""
    tensor = torch.empty(shape, dtype=dtype)
    _ask_for_huge_pages(tensor)
    return tensor


def zeros(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Zeros on the CPU. Large ones take memory and time where they are written to, and only there."""
    nbytes = math.prod(shape) * dtype.itemsize
    if sys.platform != "linux" or nbytes < 2 * HUGE_PAGE:
        return torch.zeros(shape, dtype=dtype)
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE)  # freed with the tensor
    tensor = torch.frombuffer(pages, dtype=dtype).view(*shape)
    _ask_for_huge_pages(tensor)
    return tensor


def _ask_for_huge_pages(tensor: torch.Tensor) -> None:
    """A hint: if the system has none, nothing changes."""
    advise = _madvise()
    if advise is not None and tensor.nbytes >= 2 * HUGE_PAGE:
        start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (tensor.data_ptr() + tensor.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
        advise(start, length, mmap.MADV_HUGEPAGE)


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if sys.platform != "linux" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        function = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    function.restype = ctypes.c_int
    return function


class Buffers:
    """Memory that every block of a layer reuses."""

    def __init__(self, rows: int, dtype: torch.dtype):
        self._rows, self._dtype = rows, dtype
        self._held: dict[str, torch.Tensor] = {}

    def take(self, name: str, rows: int, width: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """[rows, width], its values arbitrary."""
        if name not in self._held:
            self._held[name] = empty((self._rows, width), dtype or self._dtype)
        return self._held[name][:rows]
