"""The options of a cache of a teacher's distributions, and its size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from smolmoe.errors import RequestError

TOP_K = 20
MOST_DRAWS = 2**16 - 1  # counts take at most two bytes


@dataclass(frozen=True)
class CacheOptions:
    """The options that, with text and teacher, determine the content of a cache.

    Attributes:
        kind: `top_k` or `sampled`.
        size: k, or samples per token.
        temperature: logits are divided by it.
        batch_tokens: tokens in a batch of the teacher, and the longest window.
        shard_tokens: tokens of a shard, the most that an interrupted run loses.
    """

    kind: str = "top_k"
    size: int = TOP_K
    temperature: float = 1.0
    batch_tokens: int = 8192
    shard_tokens: int = 2**18

    def __post_init__(self) -> None:
        name = "top_k" if self.kind == "top_k" else "sampled"
        least = {"size": name, "batch_tokens": "batch_tokens", "shard_tokens": "shard_tokens"}
        for attribute, field in least.items():
            if getattr(self, attribute) < 1:
                raise RequestError("must be at least 1.", field=field, value=getattr(self, attribute))
        if not 0 < self.temperature < float("inf"):
            raise RequestError("must be above 0.", field="temperature", value=self.temperature)
        if self.kind == "sampled" and self.size > MOST_DRAWS:
            raise RequestError(f"at most {MOST_DRAWS:,} samples per token.", field="sampled", value=self.size)

    def check_vocabulary(self, vocabulary: int) -> None:
        """Raises RequestError if k exceeds the vocabulary."""
        if self.kind == "top_k" and self.size > vocabulary:
            raise RequestError(
                f"the teacher has {vocabulary:,} tokens.", field="top_k", value=self.size, fix=f"At most {vocabulary}."
            )

    def most_bytes(self, vocabulary: int) -> float:
        """Bytes per token; for a sampled cache the maximum, with all samples distinct."""
        of_id = 2 if vocabulary <= 2**16 else 3
        if self.kind == "top_k":
            return self.size * (of_id + 2) + 2
        return self.size * (of_id + (1 if self.size < 2**8 else 2)) + 6


def cache_options(*, top_k: int | None = None, sampled: int | None = None, **others: Any) -> CacheOptions:
    """The options as named by the user.

    Args:
        top_k: keep the k largest probabilities and the remaining mass; default 20.
        sampled: keep this many samples of each distribution instead (arXiv 2503.16870).
        **others: temperature, batch_tokens and shard_tokens of `CacheOptions`.

    Raises:
        RequestError: both kinds, or a value out of its range.
    """
    if top_k is not None and sampled is not None:
        raise RequestError("a cache has only one kind.", field="sampled", value=sampled, fix="Remove `top_k`, or this.")
    if sampled is not None:
        return CacheOptions("sampled", sampled, **others)
    return CacheOptions("top_k", TOP_K if top_k is None else top_k, **others)
