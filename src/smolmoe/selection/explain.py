"""Explanations of the scores: of one text, and of the rows of a file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from smolmoe.selection.entropy import Measured, entropy
from smolmoe.selection.pool import Pool
from smolmoe.selection.quotas import rank_correlation
from smolmoe.selection.results import quantiles
from smolmoe.selection.rows import Row

EXCERPT = 60  # characters


@dataclass(frozen=True)
class Frequent:
    """A token of a text: its count, its share of the tokens, and its share of the entropy −Σ p·log2 p."""

    token: str
    count: int
    share: float
    share_of_entropy: float


@dataclass(frozen=True)
class PartScore:
    """The entropy of a text or of a prompt.

    Attributes:
        tokens, distinct: number of tokens, and of distinct ones.
        bits: its entropy; `most` is log2 of its tokens, the maximum.
        shortest, longest: lengths of the texts that it is compared with.
        expected, deviation: their mean and standard deviation, in bits, at its length.
        normalised: standard deviations above the mean.
        frequent: the most frequent tokens.
    """

    tokens: int
    distinct: int
    bits: float
    most: float
    shortest: int
    longest: int
    expected: float
    deviation: float
    normalised: float
    frequent: tuple[Frequent, ...]


@dataclass(frozen=True)
class TextScore:
    """The scores of a text; `loss` in nats per token, if a model was given.

    Attributes:
        against: the texts it is compared with.
        score, plain: the weighted entropies of text and prompt: normalised, and in bits.
    """

    text: PartScore
    prompt: PartScore | None
    text_weight: float
    prompt_weight: float
    against: str
    score: float
    plain: float
    loss: float | None = None

    @property
    def perplexity(self) -> float | None:
        return None if self.loss is None else math.exp(min(self.loss, 700.0))

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"perplexity": self.perplexity}


def part_score(ids: Sequence[int], measured: Measured, decode: Callable[[int], str], top: int) -> PartScore:
    """The entropy of token ids compared with the measured texts, and its `top` most frequent tokens."""
    counts = Counter(ids)
    bits = entropy(ids)
    place = measured.compare(ids)
    frequent = []
    for token, count in counts.most_common(top):
        share = count / len(ids)
        part = -share * math.log2(share) / bits if bits > 0 else 0.0
        frequent.append(Frequent(decode(token), count, share, part))
    return PartScore(
        tokens=len(ids),
        distinct=len(counts),
        bits=bits,
        most=math.log2(len(ids)) if ids else 0.0,
        shortest=place.shortest,
        longest=place.longest,
        expected=place.mean,
        deviation=place.deviation,
        normalised=place.deviations,
        frequent=tuple(frequent),
    )


@dataclass(frozen=True)
class RowScore:
    """A row: its place, its group, its length in tokens, its score, and the beginning of its text."""

    place: str
    group: str
    tokens: int
    score: float
    begins: str


@dataclass(frozen=True)
class ScoreTable:
    """One score over all rows.

    Attributes:
        quantiles: "0" to "1".
        length_correlation: Spearman's, of score and tokens.
        highest, lowest: rows, the most extreme first.
    """

    quantiles: Mapping[str, float]
    length_correlation: float
    highest: tuple[RowScore, ...]
    lowest: tuple[RowScore, ...]


@dataclass(frozen=True)
class RowScores:
    """The rows of a file under each score: "entropy", "entropy, plain", and with a model "loss"."""

    rows: int
    tokens: int
    dropped: Mapping[str, int]
    scores: Mapping[str, ScoreTable]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def score_table(pool: Pool, top: int, rows: Mapping[int, Row]) -> ScoreTable:
    """The table of a pool's scores; `rows` has at least those of `extremes`, by place."""
    order = pool.scores.argsort(kind="stable")

    def shown(index: int) -> RowScore:
        row = rows[int(pool.places[index])]
        begins = " ".join((row.string(row.text) or "").split())[:EXCERPT]
        group = ", ".join(pool.groups[pool.group_ids[index]]) or "all"
        return RowScore(row.place, group, int(pool.sizes[index]), float(pool.scores[index]), begins)

    return ScoreTable(
        quantiles=quantiles(pool.scores) or {},
        length_correlation=rank_correlation(pool.scores, pool.sizes.astype(float)),
        highest=tuple(shown(index) for index in order[::-1][:top]),
        lowest=tuple(shown(index) for index in order[:top]),
    )


def extremes(pool: Pool, top: int) -> set[int]:
    """Places of the rows with the highest and the lowest scores."""
    order = pool.scores.argsort(kind="stable")
    return {int(pool.places[index]) for index in (*order[:top], *order[::-1][:top])}
