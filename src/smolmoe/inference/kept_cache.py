"""Keys and values of a chat, kept from one answer to the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class KeptCache:
    """The cache of the last answer, for the next prompt that begins with the same tokens.

    Caches that cannot be shortened exactly (sliding windows, recurrent states) are not kept.
    """

    def __init__(self) -> None:
        self._cache: Any = None
        self._ids: list[int] = []

    def take(self, prompt: Sequence[int]) -> Any:
        """The cache shortened to what it has in common with the prompt; None without anything in common.

        It is no longer kept: an answer that fails leaves it in an unknown state.
        """
        cache, self._cache = self._cache, None
        # The last token of a prompt is always read again: its logits are needed.
        pairs = zip(self._ids, prompt[:-1], strict=False)
        common = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(self._ids), len(prompt) - 1))
        if cache is None or common == 0:
            return None
        cache.crop(common - len(self._ids))
        return cache

    def keep(self, cache: Any, ids: Sequence[int]) -> None:
        """Keep a cache that has read the beginning of these tokens."""
        if cache is not None and cache.is_croppable and not any(cache.is_sliding):
            self._cache, self._ids = cache, list(ids[: cache.get_seq_length()])
