"""Memory that a process frees: kept for its next tensors, or returned to the kernel."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of glibc's malloc.h
_USUAL_MMAPS = 65536
_LARGEST = 2**25  # the value that glibc, which adapts its thresholds until they are set, reaches with large tensors


@contextmanager
def kept_memory() -> Iterator[None]:
    """Within, this process keeps its freed memory; only Linux with glibc is affected.

    The tensors of every training step, or decoder layer, have the same sizes. glibc returns each large one to the
    kernel, which then clears every page of the next: on a CPU that takes longer than the writes themselves.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_MMAP_MAX, 0)  # large blocks come from the heap, too
    libc.mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, _USUAL_MMAPS)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST)
        libc.malloc_trim(0)


def release_memory() -> None:
    """Free what only cycles of references hold, such as a Trainer and its model, and return it to the kernel."""
    gc.collect()
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
