"""The result, or the forecast, of a cache of teacher targets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CacheResult:
    """A written cache.

    Attributes:
        bytes_per_token: of all files of the cache.
        width: maximum number of entries of a row.
        entries: mean number of entries of a row.
        left_over: mean probability mass outside the k entries; None for a sampled cache.
        entropy: mean entropy of the teacher in nats; None for a top-k cache.
        reused: shards that existed already.
    """

    out: Path
    kind: str
    size: int
    temperature: float
    documents: int
    tokens: int
    bytes: int
    bytes_per_token: float
    width: int
    entries: float
    left_over: float | None
    entropy: float | None
    shards: int
    reused: int
    seconds: float
    device: str = "cpu"


@dataclass(frozen=True)
class CacheForecast:
    """The expected size of a cache; `bytes_per_token` is an upper bound, because samples may repeat a token."""

    out: Path
    teacher: str
    documents: int
    tokens: int
    shards: int
    window: int
    bytes_per_token: float
    bytes: int
    left_out: int
