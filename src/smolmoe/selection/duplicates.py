"""Detection of texts that repeat an earlier one, exactly or nearly."""

from __future__ import annotations

import hashlib
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHINGLE = 9  # characters: about two words; works in scripts without spaces, too
PERMUTATIONS = 128
CHUNK = 8192  # shingles hashed at a time, to bound the memory for long texts


def digest(text: str) -> str:
    """SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def shingles(text: str) -> NDArray[np.uint32]:
    """Sorted hashes of the distinct runs of characters in a text, ignoring case and spacing."""
    plain = " ".join(text.casefold().split())
    codes = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    width = min(SHINGLE, len(codes))
    runs = np.zeros(len(codes) - width + 1 if width else 0, dtype=np.uint64)
    for offset in range(width):
        runs = runs * np.uint64(0x100000001B3) + codes[offset : offset + len(runs)]
    mixed = (runs ^ (runs >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
    return np.unique((mixed >> np.uint64(32)).astype(np.uint32))


class Duplicates:
    """Remembers the kept texts; of texts that repeat each other the first one is kept.

    Near duplicates are found by MinHash with locality-sensitive hashing (Broder 1997), on runs of characters without
    case and spacing, with a fixed seed. The similarity is an estimate, with a standard error of at most .045.

    Args:
        threshold: Jaccard similarity of near duplicates; 0 detects exact duplicates only.
    """

    def __init__(self, threshold: float):
        self._threshold = threshold
        self._digests: set[bytes] = set()
        self._kept: list[NDArray[Any]] = []
        if threshold > 0:
            datasketch = import_module("datasketch")  # brings half of scipy
            self._empty = datasketch.MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=int)
            self._index = datasketch.MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS)

    def repeats(self, text: str) -> str | None:
        """The kind of duplicate, "exact" or "near"; None for a new text, which is then kept."""
        exact = bytes.fromhex(digest(text))[:16]
        if exact in self._digests:
            return "exact"
        if self._threshold > 0 and self._is_near(text):
            return "near"
        self._digests.add(exact)
        return None

    def _is_near(self, text: str) -> bool:
        sketch = self._empty.copy()
        hashes = shingles(text).tolist()
        for first in range(0, len(hashes), CHUNK):
            sketch.update_batch(hashes[first : first + CHUNK])
        for key in self._index.query(sketch):
            if float((self._kept[key] == sketch.hashvalues).mean()) >= self._threshold:
                return True
        self._index.insert(len(self._kept), sketch)
        self._kept.append(sketch.hashvalues)
        return False
