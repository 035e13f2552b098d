"""A teacher's probabilities for every token of a text: a cache on disk, keyed by document, read by memory map.

A document's key is the digest of its token ids, so the cache serves any order, mixture, block length or choice of
documents. It has a row for each token: the row of token i holds the teacher's prediction for this token, after the
end-of-text token and the document's tokens before i.

`FOLDER/cache.json` is written last and describes the rest: shards, each a folder of .npy files.

- kind `top_k`: ids [n, k]; values [n, k] float16, their log-probabilities; rest [n] float16, the log of the mass left.
- kind `sampled`: draws of each row, those of the same token counted: ids [m] and values [m], the counts; ends [n],
  where each row's entries end; rest [n] float16, the entropy of the teacher's distribution in nats.

Ids take 2 bytes for up to 65,536 tokens, else 3. In both kinds `documents` [D, 2] are the documents' digests and
`starts` [D + 1] their rows in the shard.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolmoe.core.files import expanded
from smolmoe.core.json_text import read_json
from smolmoe.core.provenance import versions
from smolmoe.data.tokens import TokenStore
from smolmoe.errors import CheckpointError, DataError

FORMAT = 1
ABOUT = "cache.json"
TOKENIZER = "tokenizer"
REQUEST = "request.json"  # there from the start: what an unfinished cache is of
FILES = {
    "top_k": ("ids", "values", "rest", "documents", "starts"),
    "sampled": ("ids", "values", "rest", "ends", "documents", "starts"),
}
SHORT_IDS = 2**16


def digest_documents(documents: Iterable[NDArray[Any]]) -> NDArray[np.uint64]:
    """Digests of documents by their token ids: [D, 2]."""
    digests = [hashlib.sha256(np.asarray(ids, dtype="<u4").tobytes()).digest()[:16] for ids in documents]
    return np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2)


def text_hash(digests: NDArray[np.uint64]) -> str:
    """A hash of the documents, independent of their order."""
    return hashlib.sha256(np.unique(digests, axis=0).tobytes()).hexdigest()[:16]


def pack_ids(ids: NDArray[Any], vocabulary: int) -> NDArray[Any]:
    """Token ids in the fewest bytes: uint16 of the same shape, or uint8 with a last axis of 3."""
    if vocabulary <= SHORT_IDS:
        return ids.astype("<u2")
    return np.ascontiguousarray(ids.astype("<u4")[..., None].view(np.uint8)[..., :3])


def unpack_ids(packed: NDArray[Any]) -> NDArray[np.int32]:
    """The inverse of `pack_ids`, as int32."""
    if packed.dtype != np.uint8:
        return packed.astype(np.int32)
    low, middle, high = (packed[..., byte].astype(np.int32) for byte in range(3))
    return low | middle << 8 | high << 16


@dataclass(frozen=True)
class TargetRows:
    """The teacher's predictions for S tokens, w entries each; a row with fewer entries is filled with id 0, weight 0.

    Attributes:
        ids: int32 [S, w].
        values: log-probabilities, float16 [S, w]; of a sampled cache shares of the draws, float32 [S, w].
        rest: float16 [S]: log of the remaining mass; in a sampled cache the entropy.
    """

    ids: NDArray[np.int32]
    values: NDArray[Any]
    rest: NDArray[np.float16]


class TargetCache:
    """A complete cache. Files are mapped when their rows are read; another process gets the folder's name.

    Attributes:
        folder: of the cache.
        about: the content of cache.json.
        kind: `top_k` or `sampled`.
        size: k, or samples per row.
        width: w, the maximum number of entries of a row.
        temperature: the teacher's logits were divided by it.
        vocabulary: number of token ids.
        text: hash of the documents.
    """

    def __init__(self, folder: Path, about: dict[str, Any]):
        self.folder = folder
        self.about = about
        self.kind = str(about["kind"])
        self.size, self.width = int(about["size"]), int(about["width"])
        self.temperature = float(about["temperature"])
        self.vocabulary = int(about["vocabulary"])
        self.text = str(about["text"])
        self._first_rows = np.cumsum([0, *(shard["tokens"] for shard in about["shards"])])
        self._open: dict[int, dict[str, NDArray[Any]]] = {}

    @property
    def tokens(self) -> int:
        """Rows."""
        return int(self._first_rows[-1])

    @property
    def identity(self) -> str:
        """A hash of the content."""
        content = {name: self.about[name] for name in ("kind", "size", "temperature", "vocabulary", "text", "teacher")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def locate(self, store: TokenStore, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first row of each of these documents of a store: [documents of the store], -1 for all others.

        Raises:
            DataError: some of them are not in the cache.
        """
        digests = digest_documents(store.document(int(index)) for index in documents)
        keys, rows = self._index
        at = np.searchsorted(keys[:, 0], digests[:, 0]).clip(max=len(keys) - 1)
        missing = int((keys[at] != digests).any(axis=1).sum())
        if missing:
            raise DataError(
                f"{missing:,} of {len(documents):,} training documents are missing: the cache is from a different "
                f"text ({self.text} there, {text_hash(digests)} here).",
                field="distill.cache",
                value=str(self.folder),
                fix="Cache this text with `smolmoe distill cache`, or train on the cached text.",
            )
        first = np.full(len(store), -1, dtype=np.int64)
        first[documents] = rows[at]
        return first

    def read(self, pieces: Sequence[tuple[int, int]]) -> TargetRows:
        """The concatenated rows of pieces (first row, count); a piece lies within one document."""
        parts = [self._piece(first, count) for first, count in pieces]
        return TargetRows(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def _piece(self, first: int, count: int) -> tuple[NDArray[np.int32], NDArray[Any], NDArray[np.float16]]:
        number = int(np.searchsorted(self._first_rows, first, side="right")) - 1
        shard = self._shard(number)
        begin = first - int(self._first_rows[number])
        rest = np.asarray(shard["rest"][begin : begin + count])
        if self.kind == "top_k":
            rows = slice(begin, begin + count)
            return unpack_ids(shard["ids"][rows]), np.asarray(shard["values"][rows]), rest
        ends = np.asarray(shard["ends"][begin : begin + count], dtype=np.int64)
        start = int(shard["ends"][begin - 1]) if begin else 0
        there = np.arange(self.width) < np.diff(ends, prepend=start)[:, None]
        ids = np.zeros((count, self.width), dtype=np.int32)
        values = np.zeros((count, self.width), dtype=np.float32)
        ids[there] = unpack_ids(shard["ids"][start : int(ends[-1])])
        values[there] = shard["values"][start : int(ends[-1])]
        values /= self.size
        return ids, values, rest

    def _shard(self, number: int) -> dict[str, NDArray[Any]]:
        if number not in self._open:
            folder = self.folder / self.about["shards"][number]["name"]
            self._open[number] = {
                name: np.load(folder / f"{name}.npy", mmap_mode="r")
                for name in FILES[self.kind]
                if name not in ("documents", "starts")
            }
        return self._open[number]

    @cached_property
    def _index(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Digests in order of their first half [D, 2], and the first row of each [D]."""
        digests, rows = [], []
        for shard, base in zip(self.about["shards"], self._first_rows[:-1], strict=True):
            digests.append(np.load(self.folder / shard["name"] / "documents.npy"))
            rows.append(np.load(self.folder / shard["name"] / "starts.npy")[:-1] + base)
        keys = np.concatenate(digests)
        order = np.argsort(keys[:, 0], kind="stable")
        return keys[order], np.concatenate(rows)[order]

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name != "_index"}
        return state | {"_open": {}}


def open_cache(folder: str | Path) -> TargetCache:
    """The cache in a folder.

    Raises:
        DataError: the cache is missing, incomplete, of a different version, or its files were changed.
    """
    path = expanded(folder)
    about_file = path / ABOUT
    if not about_file.is_file():
        unfinished = (path / REQUEST).is_file()
        raise DataError(
            "the cache is incomplete." if unfinished else f"not a teacher's cache (no {ABOUT} in it).",
            field="distill.cache",
            value=str(folder),
            fix="Run the command that started it again, with `resume=True`."
            if unfinished
            else "Create one with `smolmoe distill cache`.",
        )
    try:
        about = read_json(about_file)
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']}, this version reads {FORMAT}")
        _check_files(path, about["shards"])
        return TargetCache(path, about)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"the cache is damaged ({error}).", field="distill.cache", value=str(folder), fix="Create it again."
        ) from error


def file_sizes(shard: Path) -> dict[str, int]:
    """Bytes of each file of a shard."""
    return {file.name: file.stat().st_size for file in sorted(shard.iterdir())}


def shard_array(shard: Path, name: str) -> NDArray[Any]:
    """An array of a shard.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        found: NDArray[Any] = np.load(shard / f"{name}.npy")
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(
            f"{shard.name}/{name}.npy cannot be read ({error}).",
            field="out",
            value=str(shard),
            fix="Delete the shard, then use `resume=True`: it is written again.",
        ) from error
    return found


def describe_cache(
    shards: Sequence[Path], *, kind: str, size: int, vocabulary: int, text: str, **about: Any
) -> dict[str, Any]:
    """The content of cache.json.

    Args:
        shards: complete folders.
        text: hash of the documents.
        about: other entries.

    Raises:
        CheckpointError: a shard cannot be read.
    """
    found = [_describe_shard(shard, kind, size) for shard in shards]
    tokens = sum(shard["tokens"] for shard in found)
    nbytes = sum(sum(shard["files"].values()) for shard in found)

    def mean(name: str) -> float | None:
        known = [shard[name] * shard["tokens"] / tokens for shard in found if shard[name] is not None]
        return sum(known) if known else None

    return {
        "format": FORMAT,
        "kind": kind,
        "size": size,
        "vocabulary": vocabulary,
        "width": max(shard["width"] for shard in found),
        "text": text,
        "documents": sum(shard["documents"] for shard in found),
        "tokens": tokens,
        "bytes": nbytes,
        "bytes_per_token": round(nbytes / tokens, 2),
        **{name: mean(name) for name in ("entries", "left_over", "entropy")},
        **about,
        "versions": versions(),
        "shards": found,
    }


def _describe_shard(shard: Path, kind: str, size: int) -> dict[str, Any]:
    rest = shard_array(shard, "rest").astype(np.float64)
    sampled = kind == "sampled"
    widths = np.diff(shard_array(shard, "ends").astype(np.int64), prepend=0) if sampled else np.array([size])
    return {
        "name": shard.name,
        "documents": len(shard_array(shard, "documents")),
        "tokens": len(rest),
        "width": int(widths.max()),
        "entries": float(widths.mean()),
        "left_over": None if sampled else float(np.exp(rest).mean()),
        "entropy": float(rest.mean()) if sampled else None,
        "files": file_sizes(shard),
    }


def _check_files(folder: Path, shards: Sequence[dict[str, Any]]) -> None:
    for shard in shards:
        for name, size in shard["files"].items():
            found = (folder / shard["name"] / name).stat().st_size
            if found != size:
                raise ValueError(f"{shard['name']}/{name} has {found} bytes, not {size}")
