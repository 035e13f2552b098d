"""The endless order of the documents: it depends on the seed and the weights, not on how much of it is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smolmoe.data.tokens import TokenStore
from smolmoe.errors import DataError

# Permutations of a small corpus are sampled this many documents at a time.
_DRAWN = 2**16
_OF_BLOCKS = 2**32  # not the number of any source


@dataclass(frozen=True)
class Order:
    """The beginning of the order.

    Attributes:
        documents: indices into the store, in reading order [n].
        ends: tokens read at the end of each [n].
    """

    documents: NDArray[np.int64]
    ends: NDArray[np.int64]


def order_documents(store: TokenStore, tokens: int, *, seed: int, weights: Sequence[float] | None) -> Order:
    """The documents with the first `tokens` tokens of the endless order.

    Without weights all documents are shuffled together, differently in each epoch. With weights each source is shuffled
    separately, and the next document comes from the source with the fewest tokens read, relative to its weight. So the
    sources' shares follow the weights at every moment, to within one document. A streamed source keeps its order; a
    store with one is read by equal weights by default, since a stream has no known size.

    Raises:
        DataError: a source with a weight, or the whole store, has no tokens; not one weight per source.
    """
    sources = len(store.streamed)
    if weights is not None and (len(weights) != sources or min(weights) <= 0):
        raise DataError(
            "weights must be positive, one per source.",
            field="data.sources",
            value=list(weights),
            fix=f"Give {sources} weights.",
        )
    lengths = store.lengths
    if weights is None and not any(store.streamed):
        chosen = _repeat(np.arange(len(store)), lengths, tokens, seed=seed, source=0, shuffled=True)
        return _cut(chosen, lengths, tokens)
    members = [np.flatnonzero(store.source_ids == source) for source in range(sources)]
    if weights is None:
        weights = [1.0 if len(group) else 0.0 for group in members]
    total = math.fsum(weights)
    parts, behind = [], []
    for source, (group, weight) in enumerate(zip(members, weights, strict=True)):
        if weight == 0:
            continue
        # One token more than the share, for its rounding.
        wanted = math.ceil(tokens * (weight / total)) + 1
        part = _repeat(group, lengths, wanted, seed=seed, source=source, shuffled=not store.streamed[source])
        read = np.cumsum(lengths[part])
        parts.append(part)
        behind.append((read - lengths[part]) / weight)
    merged = np.concatenate(parts)[np.argsort(np.concatenate(behind), kind="stable")] if parts else np.arange(0)
    return _cut(merged, lengths, tokens)


def _cut(documents: NDArray[np.int64], lengths: NDArray[np.int64], tokens: int) -> Order:
    ends = np.cumsum(lengths[documents])
    count = int(np.searchsorted(ends, tokens)) + 1
    return Order(documents[:count], ends[:count])


def _repeat(
    members: NDArray[np.int64], lengths: NDArray[np.int64], tokens: int, *, seed: int, source: int, shuffled: bool
) -> NDArray[np.int64]:
    """The documents with the first `tokens` tokens of the epochs of one source."""
    epoch = int(lengths[members].sum())
    if epoch == 0:
        raise DataError(
            "this source has no text for training.",
            field=f"data.sources[{source}]",
            value=f"{len(members)} documents",
            fix="Remove the source, or add documents to it that no other source has.",
        )
    epochs = -(-tokens // epoch)
    at_once = max(1, _DRAWN // len(members))
    drawn = [
        members[_permutations(len(members), at_once, seed, source, number)] if shuffled else np.tile(members, at_once)
        for number in range(-(-epochs // at_once))
    ]
    documents = np.concatenate(drawn)
    return documents[: int(np.searchsorted(np.cumsum(lengths[documents]), tokens)) + 1]


def shuffle_blocks(count: int, window: int, seed: int) -> NDArray[np.int64]:
    """The stream's block at each of the first `count` places: every `window` blocks are shuffled [count].

    Neighbours in the stream are pieces of the same documents: unshuffled, a batch would have many samples of one text.
    """
    windows = -(-count // window)
    drawn = [_permutations(window, 1, seed, _OF_BLOCKS, number) + number * window for number in range(windows)]
    return np.concatenate(drawn)[:count]


def _permutations(size: int, count: int, seed: int, source: int, number: int) -> NDArray[np.int64]:
    """`count` concatenated permutations.

    They sort raw bits: unlike numpy's own shuffling, this gives the same result in every version of numpy.
    """
    words = np.random.SeedSequence([seed % 2**64, source, number])
    bits = np.random.PCG64(words).random_raw(size * count).reshape(count, size)
    return np.argsort(bits, axis=1, kind="stable").ravel()
