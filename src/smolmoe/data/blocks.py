"""Documents joined in a given order and cut into blocks of equal length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from smolmoe.data.order import order_documents, shuffle_blocks
from smolmoe.data.targets import TargetCache
from smolmoe.data.tokens import TokenStore
from smolmoe.errors import DataError

WINDOW = 1024  # blocks of the stream that are shuffled among each other


def whole_windows(count: int) -> int:
    """The number of stream blocks that the first `count` places are sampled from, if the stream has no epochs."""
    return -(-count // WINDOW) * WINDOW


class Blocks(Dataset[dict[str, torch.Tensor]]):
    """The first `count` blocks of the endless stream of documents, shuffled within windows of an epoch or 1024 blocks.

    The order depends on the store, the seed and the weights alone: more blocks begin with the same ones. A block is
    `input_ids`, `labels` and each token's `domain_ids`, int64 [S]; labels are the inputs, as transformers shifts them.

    Args:
        store: the documents.
        count: blocks.
        length: S, tokens per block.
        seed: of the documents' order.
        weights: the sources' shares of the tokens; None for their natural sizes (see `order_documents`).
        targets: a teacher's, for all documents that the blocks are made of. A block then also has its targets for each
            token: `target_ids`, `target_values` [S, w] and `target_rest` [S], see `TargetRows`. The teacher read each
            document from its beginning, after the end-of-text token, which ends the document before it in a block.
        isolate: give `position_ids` that restart with each document, so that no token sees another document. A
            document begins with the end-of-text token of the one before it, as it does where losses are measured, and
            that token is still predicted from the text that it ends. Needs a model called without a cache and without
            an attention mask, for transformers finds the documents' borders in the positions.

    Raises:
        DataError: the store does not fill one block, a source with a weight is empty, or a document has no
            targets.
    """

    def __init__(
        self,
        store: TokenStore,
        *,
        count: int,
        length: int,
        seed: int,
        weights: Sequence[float] | None = None,
        isolate: bool = False,
        targets: TargetCache | None = None,
    ):
        if store.tokens < length:
            raise DataError(
                f"{store.tokens} tokens do not fill a block of {length}.",
                field="data.length",
                value=length,
                fix="Use more text or shorter blocks.",
            )
        self.store = store
        self.count = count
        self.length = length
        self.isolate = isolate
        # A store of a streamed source has no epochs: reading more of the stream must not change the order.
        window = WINDOW if any(store.streamed) else min(WINDOW, store.tokens // length)
        self._places = shuffle_blocks(count, window, seed)
        tokens = (int(self._places.max(initial=0)) + 1) * length
        self._order = order_documents(store, tokens, seed=seed, weights=weights)
        self.targets = targets
        if targets is not None:
            self._target_rows = targets.locate(store, np.unique(self._order.documents))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < self.count:
            raise IndexError(f"block {index} of {self.count}")
        begin = int(self._places[index]) * self.length
        end = begin + self.length
        ends = self._order.ends
        first, last = np.searchsorted(ends, begin, side="right"), np.searchsorted(ends, end)
        documents = self._order.documents[first : last + 1]
        lengths = self.store.lengths_of(documents)
        offsets = ends[first : last + 1] - lengths - begin  # of each document's start, from the block's
        pieces = np.minimum(offsets + lengths, self.length) - np.maximum(offsets, 0)
        skipped = np.maximum(-offsets, 0)  # tokens of a document that are before the block
        starts = self.store.starts[documents] + skipped
        ids = np.concatenate([self.store.ids[a : a + n] for a, n in zip(starts, pieces, strict=True)]).astype(np.int64)
        block: dict[str, NDArray[Any]] = {
            "input_ids": ids,
            "labels": ids.copy(),
            "domain_ids": np.repeat(self.store.domain_ids[documents], pieces).astype(np.int64),
        }
        if self.targets is not None:
            firsts = self._target_rows[documents] + skipped
            rows = self.targets.read([(int(a), int(n)) for a, n in zip(firsts, pieces, strict=True) if n > 0])
            block |= {"target_ids": rows.ids, "target_values": rows.values, "target_rest": rows.rest}
        if self.isolate:
            block["position_ids"] = _restarting(offsets[(offsets > 0) & (pieces > 0)] - 1, self.length)
        return {name: torch.from_numpy(values) for name, values in block.items()}


def _restarting(begins: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """0, 1, 2, ... up to `length`, restarting at each of these places."""
    places = np.arange(length)
    begins = np.concatenate([[0], begins])
    return places - begins[np.searchsorted(begins, places, side="right") - 1]
