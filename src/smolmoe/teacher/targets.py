"""Log-probabilities over HTTP as a cache that `distill` trains on.

A document is one answer: its tokens, each with the teacher's candidates, and the end-of-text token. Endpoints give no
candidates for the latter; since the teacher ended there, it gets probability 1.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolmoe.core.files import write_json
from smolmoe.data.targets import ABOUT, TOKENIZER, describe_cache, digest_documents, pack_ids, text_hash
from smolmoe.data.tokens import end_of_text
from smolmoe.teacher.logprobs import Mismatch, Targets

FOLDER = "targets"
SHARD_TOKENS = 1_000_000

Arrays = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]  # document [S], ids [S, k], values [S, k]


class TargetWriter:
    """Writes `FOLDER` to a temporary place in `out` and renames it at the end, replacing an earlier cache.

    Args:
        k: number of candidates kept per token.
        teacher: description of the teacher in the cache.
    """

    def __init__(self, out: Path, tokenizer: Any, k: int, teacher: dict[str, Any], shard_tokens: int = SHARD_TOKENS):
        self._place, self._partial = out / FOLDER, out / f".{FOLDER}.partial"
        self._tokenizer, self._k, self._teacher = tokenizer, k, teacher
        self._vocabulary = 1 + max(end_of_text(tokenizer), *tokenizer.get_vocab().values())
        self._shard_tokens = shard_tokens
        self._held: list[Arrays] = []
        self._shards: list[Path] = []
        self._digests: list[NDArray[np.uint64]] = []
        self._seen: set[bytes] = set()
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir()

    def add(self, targets: Targets, finish_reason: str | None) -> None:
        """Take an answer; duplicates are kept once.

        Raises:
            Mismatch: it was truncated.
        """
        if finish_reason != "stop":
            raise Mismatch(f"the answer was truncated (finish_reason {finish_reason})")
        end = end_of_text(self._tokenizer)
        document = np.array([*targets.ids, end])
        if document.tobytes() in self._seen:
            return
        self._seen.add(document.tobytes())
        given = [*zip(targets.candidates, targets.logprobs, strict=True), ([end], [0.0])]
        rows = [_best(names, logprobs, self._k) for names, logprobs in given]
        self._held.append((document, np.array([names for names, _ in rows]), np.array([values for _, values in rows])))
        if sum(len(held[0]) for held in self._held) >= self._shard_tokens:
            self._write_shard()

    def _write_shard(self) -> None:
        documents = [held[0] for held in self._held]
        ids = np.concatenate([held[1] for held in self._held])
        values = np.concatenate([held[2] for held in self._held])
        digests = digest_documents(documents)
        with np.errstate(divide="ignore"):
            rest = np.log(np.clip(1 - np.exp(values).sum(-1), 0, 1)).astype(np.float16)
        folder = self._partial / f"shard-{len(self._shards):05d}"
        folder.mkdir()
        arrays = {
            "ids": pack_ids(ids, self._vocabulary),
            "values": values.astype(np.float16),
            "rest": rest,
            "documents": digests,
            "starts": np.cumsum([0, *map(len, documents)]),
        }
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        self._shards.append(folder)
        self._digests.append(digests)
        self._held = []

    def finish(self) -> dict[str, Any] | None:
        """Move the cache into place; returns the content of cache.json, or None if no answer fits."""
        if self._held:
            self._write_shard()
        shutil.rmtree(self._place, ignore_errors=True)
        if not self._shards:
            shutil.rmtree(self._partial)
            return None
        about = describe_cache(
            self._shards,
            kind="top_k",
            size=self._k,
            vocabulary=self._vocabulary,
            text=text_hash(np.concatenate(self._digests)),
            temperature=1.0,
            teacher=self._teacher,
        )
        self._tokenizer.save_pretrained(self._partial / TOKENIZER)
        write_json(self._partial / ABOUT, about)
        self._partial.rename(self._place)
        return about


def _best(names: list[int], logprobs: list[float], k: int) -> tuple[list[int], list[float]]:
    """The k most likely candidates, padded if there are fewer.

    Padding has no weight; its ids must be distinct, since the student's probabilities of a row's ids are summed.
    """
    best = sorted(zip(logprobs, names, strict=True), reverse=True)[:k]
    kept = [name for _, name in best]
    fillers = [name for name in range(2 * k) if name not in kept][: k - len(kept)]
    return kept + fillers, [value for value, _ in best] + [-math.inf] * len(fillers)
