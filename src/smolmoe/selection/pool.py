"""The candidate rows with their scores, without their texts."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from smolmoe.core.progress import Progress
from smolmoe.core.vocabulary import UnknownTokenError
from smolmoe.errors import DataError
from smolmoe.recipe.select import SelectRecipe
from smolmoe.selection.duplicates import digest
from smolmoe.selection.filters import Candidate, Sieve
from smolmoe.selection.quotas import Choice, choose, preference
from smolmoe.selection.rows import Row, RowSource, group_of
from smolmoe.selection.scores import Scorer

BATCH = 256  # texts tokenised and scored together
DIGEST = 32  # bytes


@dataclass(frozen=True)
class Pool:
    """N candidate rows, in the order of reading.

    Attributes:
        places: index of each among all rows read.
        digests: SHA-256 of each text, concatenated.
        group_ids: index of each row's group in `groups`.
        sizes: tokens of each, or characters if no tokenizer was used.
        scores: of each.
        groups: values of the grouping columns, in order of first appearance, with or without candidates.
        columns: all columns of all rows.
        read: number of rows read.
        dropped: reason -> rows.
        held_out: texts held out for evaluation.
        counts_tokens: whether `sizes` are tokens.
    """

    places: NDArray[np.int64]
    digests: bytes
    group_ids: NDArray[np.int64]
    sizes: NDArray[np.int64]
    scores: NDArray[np.float64]
    groups: tuple[tuple[str, ...], ...]
    columns: tuple[str, ...]
    read: int
    dropped: dict[str, int]
    held_out: int
    counts_tokens: bool

    def digest(self, index: int) -> str:
        return self.digests[DIGEST * index : DIGEST * (index + 1)].hex()

    def costs(self, recipe: SelectRecipe) -> NDArray[np.int64]:
        """The share of each row in the budget: 1, or its tokens."""
        return self.sizes if recipe.unit == "tokens" else np.ones_like(self.sizes)

    def choose(self, recipe: SelectRecipe) -> Choice:
        """The rows that the recipe asks for."""
        wanted = preference(self.scores, self.group_ids, recipe.preferred)
        return choose(wanted, self.group_ids, self.costs(recipe), recipe.budget, recipe.quota, len(self.groups))


def scan(recipe: SelectRecipe, sources: Sequence[RowSource], scorer: Scorer, report: Progress) -> Pool:
    """Read, filter and score all rows; no more than a batch of texts is in memory.

    Raises:
        DataError: a row cannot be read or lacks a column, no candidate is left, or every score is NaN or infinite.
    """
    sieve = Sieve(recipe)
    groups: dict[tuple[str, ...], int] = {}
    columns: dict[str, None] = {}
    places, group_ids, characters, digests = array("q"), array("q"), array("q"), bytearray()
    read = 0
    for batch in _batches(chain.from_iterable(source.rows() for source in sources)):
        found: list[Candidate] = []
        for place, row in enumerate(batch, read):
            columns |= dict.fromkeys(row.values)
            group = -1 if row.is_nothing else groups.setdefault(group_of(row, recipe.by), len(groups))
            candidate = sieve.candidate(row)
            if candidate is not None:
                found.append(candidate)
                places.append(place)
                group_ids.append(group)
                characters.append(len(candidate.text))
                digests += bytes.fromhex(digest(candidate.text))
        try:
            scorer.add(found, group_ids[len(group_ids) - len(found) :])
        except UnknownTokenError as error:
            raise error.at(f"row {places[error.index - len(found)] + 1}", "text", error.value) from None
        read += len(batch)
        report("Reading and scoring", read, 0)
    counts_tokens = len(scorer.tokens) == len(places) > 0
    pool = Pool(
        places=np.asarray(places),
        digests=bytes(digests),
        group_ids=np.asarray(group_ids),
        sizes=np.asarray(scorer.tokens if counts_tokens else characters),
        scores=scorer.scores(),
        groups=tuple(groups),
        columns=tuple(columns),
        read=read,
        dropped=dict(sieve.dropped),
        held_out=sieve.held_out,
        counts_tokens=counts_tokens,
    )
    return _usable(pool)


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while batch := list(islice(rows, BATCH)):
        yield batch


def _usable(pool: Pool) -> Pool:
    """Without the rows that have no tokens, or a NaN or infinite score.

    Raises:
        DataError: no candidate is left.
    """
    keep = np.isfinite(pool.scores) & (pool.sizes > 0)
    dropped = Counter(pool.dropped)
    dropped["no tokens"] += int((pool.sizes == 0).sum())
    dropped["score is not a number"] += int((~np.isfinite(pool.scores) & (pool.sizes > 0)).sum())
    dropped = +dropped
    if not keep.any():
        said = ", ".join(f"{reason}: {count}" for reason, count in dropped.most_common()) or "there are no rows"
        held = f", held out: {pool.held_out}" if pool.held_out else ""
        raise DataError(
            f"no row is left to choose from ({said}{held}).",
            field="data",
            value=f"{pool.read} rows",
            fix="Relax the limits on text length, or use other rows.",
        )
    kept = np.flatnonzero(keep)
    digests = np.frombuffer(pool.digests, dtype=f"V{DIGEST}")[kept].tobytes()
    return replace(
        pool,
        places=pool.places[kept],
        digests=digests,
        group_ids=pool.group_ids[kept],
        sizes=pool.sizes[kept],
        scores=pool.scores[kept],
        dropped=dict(dropped),
    )
