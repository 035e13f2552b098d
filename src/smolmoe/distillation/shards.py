"""Shards of a cache: consecutive documents in a folder that exists only when complete."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from smolmoe.data.targets import digest_documents, pack_ids
from smolmoe.data.tokens import TokenStore
from smolmoe.distillation.options import CacheOptions
from smolmoe.distillation.sparse import Entries, drawn, largest
from smolmoe.distillation.teacher import Teacher
from smolmoe.errors import DataError

Told = Callable[[int], None]  # tokens done


def plan_shards(store: TokenStore, tokens: int) -> list[range]:
    """The consecutive documents of each shard, up to the one that fills it. Every process plans the same."""
    shards, first = [], 0
    for document in range(len(store)):
        full = store.starts[document + 1] - store.starts[first] >= tokens
        if full or document == len(store) - 1:
            shards.append(range(first, document + 1))
            first = document + 1
    return shards


def shard_name(number: int) -> str:
    return f"shard-{number:05d}"


def write_shard(
    folder: Path, name: str, teacher: Teacher, store: TokenStore, documents: range, options: CacheOptions, told: Told
) -> None:
    """Run the teacher on a shard's documents, and write its predictions into `folder / name`."""
    texts = [store.document(index) for index in documents]
    digests = digest_documents(texts)
    starts = np.cumsum([0, *map(len, texts)])
    uniforms = np.concatenate([_uniforms(*pair) for pair in zip(digests, texts, strict=True)])
    rest = np.empty(starts[-1], dtype=np.float16)
    parts: list[tuple[NDArray[Any], ...]] = []
    for rows, log_probabilities in teacher.read(texts):
        if options.kind == "top_k":
            entries = largest(log_probabilities, options.size)
        else:
            entries = drawn(log_probabilities, options.size, torch.from_numpy(uniforms[rows]))
        rest[rows] = entries.rest.cpu().numpy()
        parts.append(_packed(rows, entries, teacher.vocabulary, options))
        told(len(rows))
    arrays = _joined(parts, len(rest), options) | {"rest": rest, "documents": digests, "starts": starts}
    partial = folder / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for key, array in arrays.items():
        np.save(partial / f"{key}.npy", array)
    partial.rename(folder / name)


def _packed(
    rows: NDArray[np.int64], entries: Entries, vocabulary: int, options: CacheOptions
) -> tuple[NDArray[Any], ...]:
    """Rows, ids and values of a batch's entries in the stored dtypes."""
    of_row = rows[entries.rows.cpu().numpy()]
    values = entries.values.cpu().numpy()
    if options.kind == "sampled":
        values = values.astype("u1" if options.size < 2**8 else "<u2")
    return of_row, pack_ids(entries.ids.cpu().numpy(), vocabulary), values


def _joined(parts: list[tuple[NDArray[Any], ...]], tokens: int, options: CacheOptions) -> dict[str, NDArray[Any]]:
    """The entries of all batches in the order of their rows."""
    of_row, ids, values = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order = np.argsort(of_row, kind="stable")
    ids, values = ids[order], values[order]
    if options.kind == "top_k":
        return {
            "ids": ids.reshape(tokens, options.size, *ids.shape[1:]),
            "values": values.reshape(tokens, options.size),
        }
    ends = np.cumsum(np.bincount(of_row, minlength=tokens))
    if ends[-1] >= 2**32:
        raise DataError(
            "a document has too many tokens for a shard with this many samples.",
            field="sampled",
            value=options.size,
            fix="Use fewer samples, or split the document.",
        )
    return {"ids": ids, "values": values, "ends": ends.astype("<u4")}


def _uniforms(digest: NDArray[np.uint64], ids: NDArray[Any]) -> NDArray[np.float64]:
    """A number in [0, 1) for each token, which depends only on the document."""
    bits = np.random.PCG64([int(half) for half in digest]).random_raw(len(ids))
    return np.asarray((bits >> np.uint64(11)) * 2.0**-53)
