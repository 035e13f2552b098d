"""Choices sorted by expert.

Shapes: T tokens, K experts per token, R = T*K choices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

Span = tuple[int, int, int]  # expert, first row, row after the last


@dataclass(frozen=True)
class Routes:
    """Rows sorted by expert.

    Attributes:
        order: [R], the choice (in the order of the flattened [T, K]) that a row is.
        token: [R], the token of a row.
        place: [T, K], the row of a choice.
        spans: the rows of each expert; experts without rows are omitted.
    """

    order: torch.Tensor
    token: torch.Tensor
    place: torch.Tensor
    spans: Sequence[Span]

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All of it, to be kept for a backward pass."""
        return self.order, self.token, self.place, torch.tensor(self.spans, dtype=torch.int64)

    @classmethod
    def of(cls, order: torch.Tensor, token: torch.Tensor, place: torch.Tensor, spans: torch.Tensor) -> Routes:
        return cls(order, token, place, [(expert, start, end) for expert, start, end in spans.tolist()])

    def blocks(self, rows: int) -> Iterator[list[Span]]:
        """Neighbouring experts, of at most so many rows together unless a single one has more."""
        block: list[Span] = []
        for span in self.spans:
            if block and span[2] - block[0][1] > rows:
                yield block
                block = []
            block.append(span)
        if block:
            yield block

    def largest(self, rows: int) -> int:
        """Rows of the largest of these blocks, or somewhat more."""
        single = max((end - start for _, start, end in self.spans), default=0)
        return min(len(self.order), max(rows, single))


def sort(index: torch.Tensor) -> Routes:
    """The routes of chosen experts [T, K]."""
    tokens, top_k = index.shape
    flat = index.reshape(-1)
    order = flat.argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    return Routes(order, order // top_k, place.view(tokens, top_k), _spans(torch.bincount(flat).tolist()))


def _spans(counts: Sequence[int]) -> list[Span]:
    spans, start = [], 0
    for expert, count in enumerate(counts):
        if count:
            spans.append((expert, start, start + count))
            start += count
    return spans


def rows_of(block: Sequence[Span]) -> list[int]:
    """How many rows each expert of a block has."""
    return [end - start for _, start, end in block]
