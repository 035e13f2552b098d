"""What came of a cache, or would."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CacheResult:
    """What was written.

    Attributes:
        bytes_per_token: of all files of the cache.
        width: the most entries of a row.
        entries: a row's entries, on average.
        left_over: mean mass outside the k entries; None for a sampled cache.
        entropy: mean entropy of the teacher in nats; None for a top-k cache.
        reused: shards that were there already.
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
    """What a cache would be: `bytes_per_token` at most, where draws may fall on one token."""

    out: Path
    teacher: str
    documents: int
    tokens: int
    shards: int
    window: int
    bytes_per_token: float
    bytes: int
    left_out: int
