"""Memory that a training step frees and the next one takes again, without the kernel in between."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of glibc's malloc.h
_USUAL_MMAPS = 65536
_LARGEST = 2**25  # what glibc, which moves its thresholds until they are set, comes to with large tensors


@contextmanager
def kept_memory() -> Iterator[None]:
    """Within, freed memory of this process stays with it; elsewhere than on Linux with glibc nothing changes.

    The tensors of every step are of the same sizes. glibc gives each of the large ones back as it is freed, and the
    kernel clears every page of the next: on a CPU that takes longer than what is then written there.
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


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
