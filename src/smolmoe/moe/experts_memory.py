"""Large tensors in large pages, and memory that is used again.

A fresh tensor beyond glibc's largest heap block (32 MB) is mapped anew, and the kernel clears it page by page as it is
first written, which can take several times as long as the writing.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Sequence
from functools import cache

import torch

HUGE_PAGE = 2**21


def empty(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """An uninitialised tensor on the CPU; a large one asks for huge pages where the system has them to give."""
    tensor = torch.empty(shape, dtype=dtype)
    advise = _madvise()
    if advise is not None and tensor.nbytes >= 2 * HUGE_PAGE:
        start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (tensor.data_ptr() + tensor.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
        advise(start, length, mmap.MADV_HUGEPAGE)  # a hint: that it is refused changes nothing
    return tensor


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
    """Memory that every block of a layer uses again."""

    def __init__(self, rows: int, dtype: torch.dtype):
        self._rows, self._dtype = rows, dtype
        self._held: dict[str, torch.Tensor] = {}

    def take(self, name: str, rows: int, width: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """[rows, width], its values arbitrary."""
        if name not in self._held:
            self._held[name] = empty((self._rows, width), dtype or self._dtype)
        return self._held[name][:rows]
