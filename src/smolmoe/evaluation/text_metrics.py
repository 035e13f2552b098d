"""Metrics of corrections: BLEU, GLEU, SARI and exact match, over a corpus, with intervals.

All four are in percent, case-sensitive, and use the words of sacrebleu's 13a tokenizer. A row has `WIDTH` statistics,
whose sums over all rows, or over a bootstrap sample of them, give the metrics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolmoe.core.statistics import Interval, ends, resample
from smolmoe.errors import RequestError

METRICS = ("bleu", "gleu", "sari", "exact_match")
ORDER = 4  # n-grams of 1 to 4 words
DRAWS = 1000
_LENGTHS = 2  # of the output and of the reference, before the n-grams' counts
_PART = _LENGTHS + 2 * ORDER
_SARI_COUNTS = 9
WIDTH = 2 * _PART + ORDER * _SARI_COUNTS + 2

Floats = NDArray[np.float64]
Words = Sequence[str]
Ngram = tuple[str, ...]


@dataclass(frozen=True)
class Corrected:
    """A text, a system's correction of it, and people's corrections."""

    source: str
    output: str
    references: tuple[str, ...]


def words(text: str) -> list[str]:
    """The words and punctuation of a text.

    Raises:
        RequestError: sacrebleu is not installed.
    """
    return str(_bleu().tokenizer(text.strip())).split()


def row_statistics(row: Corrected) -> Floats:
    """The statistics of a row that the metrics need, [WIDTH].

    Raises:
        RequestError: sacrebleu is not installed.
    """
    source, output = words(row.source), words(row.output)
    references = [words(reference) for reference in row.references]
    return np.array(
        [
            *bleu_statistics(row.output, row.references),
            *gleu_statistics(source, output, references),
            *sari_statistics(source, output, references),
            float(is_exact(row.output, row.references)),
            1.0,
        ]
    )


def metrics_of(sums: Floats) -> Floats:
    """The metrics [..., 4] of summed statistics [..., WIDTH], in the order of METRICS, in percent."""
    bleu = np.apply_along_axis(_bleu_of, -1, sums[..., :_PART])
    gleu = gleu_of(sums[..., _PART : 2 * _PART])
    exact = sums[..., -2] / sums[..., -1]
    return np.stack([bleu, 100 * gleu, 100 * sari_of(sums[..., 2 * _PART : -2]), 100 * exact], axis=-1)


def draw_rows(rows: int, *, seed: int = 0) -> Floats:
    """How often each row is in each bootstrap sample, [draws, rows]."""
    return resample(rows, DRAWS, np.random.default_rng(seed))


def intervals(values: Floats, samples: Floats) -> dict[str, Interval]:
    """Each metric's value [4] with the 95% interval of its bootstrap samples [draws, 4]."""
    low, high = ends(samples)
    return {
        name: Interval(*(round(float(number), 4) for number in (values[at], low[at], high[at])))
        for at, name in enumerate(METRICS)
    }


def bleu_statistics(output: str, references: Sequence[str]) -> list[float]:
    """Lengths and n-gram counts of sacrebleu for one text: their sums over a corpus give `corpus_bleu`, exactly."""
    score = _bleu().sentence_score(output, list(references))
    return [score.sys_len, score.ref_len, *score.counts, *score.totals]


def _bleu_of(sums: Floats) -> float:
    output, reference = (round(length) for length in sums[:_LENGTHS].tolist())  # means over references are not integers
    correct, total = sums[_LENGTHS : _LENGTHS + ORDER].tolist(), sums[_LENGTHS + ORDER :].tolist()
    return float(_bleu().compute_bleu(correct, total, output, reference, smooth_method="exp").score)


@cache
def _bleu() -> Any:
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise RequestError(
            "scoring corrections needs it, and it is not installed.",
            field="library",
            value="sacrebleu",
            fix="pip install 'smolmoe[align]'",
        ) from error
    # Without the effective order it warns about scores of single sentences; only the counts are used.
    return BLEU(effective_order=True)


def gleu_statistics(source: Words, output: Words, references: Sequence[Words]) -> list[float]:
    """Lengths and n-gram counts of GLEU for one text, the means over its references.

    GLEU of Napoles et al. (2015) without tuning (arXiv 1605.02592): matches with the reference, minus the n-grams of
    the output that are in the source but not in the reference, at least 0 per text. The paper samples a reference for
    each text 500 times and averages the scores; here all references have equal weight in the statistics, which is the
    limit of many samples and needs no seed.
    """
    each = [_gleu_of_one(source, output, reference) for reference in references]
    return [sum(column) / len(each) for column in zip(*each, strict=True)]


def _gleu_of_one(source: Words, output: Words, reference: Words) -> list[float]:
    matches, totals = [], []
    for n in range(1, ORDER + 1):
        wanted, given, said = ngrams(reference, n), ngrams(source, n), ngrams(output, n)
        left_wrong = Counter({ngram: count for ngram, count in given.items() if ngram not in wanted})
        matches.append(max(0, (said & wanted).total() - (said & left_wrong).total()))
        totals.append(said.total())
    return [len(output), len(reference), *matches, *totals]


def gleu_of(sums: Floats) -> Floats:
    """GLEU [...], 0 to 1, of summed statistics [..., 10]; 0 if an order has no match."""
    output, reference = sums[..., 0], sums[..., 1]
    matches, totals = sums[..., _LENGTHS : _LENGTHS + ORDER], sums[..., _LENGTHS + ORDER :]
    is_positive = matches.min(axis=-1) > 0
    precisions = np.divide(matches, totals, out=np.ones_like(matches), where=matches > 0)
    shortness = np.minimum(0, 1 - np.divide(reference, output, out=np.ones_like(output), where=output > 0))
    return np.asarray(np.where(is_positive, np.exp(shortness + np.log(precisions).mean(axis=-1)), 0.0))


def sari_statistics(source: Words, output: Words, references: Sequence[Words]) -> list[float]:
    """Counts of SARI for one text, [4 orders x 9].

    Xu et al. (TACL 2016). For each order, the n-grams kept correctly, kept, to keep; added correctly, added, to add;
    deleted correctly, deleted, to delete. Kept and deleted n-grams count by occurrence, times the references that
    agree; added n-grams count once.
    """
    statistics: list[float] = []
    for n in range(1, ORDER + 1):
        wanted: Counter[Ngram] = Counter()
        for reference in references:
            wanted += ngrams(reference, n)
        given, said = (_times(ngrams(text, n), len(references)) for text in (source, output))
        kept, to_keep = given & said, given & wanted
        added, to_add = set(said) - set(given), set(wanted) - set(given)
        deleted, to_delete = given - said, given - wanted
        statistics += [
            *((kept & to_keep).total(), kept.total(), to_keep.total()),
            *(len(added & to_add), len(added), len(to_add)),
            *((deleted & to_delete).total(), deleted.total(), to_delete.total()),
        ]
    return statistics


def sari_of(sums: Floats) -> Floats:
    """SARI [...], 0 to 1, of summed statistics [..., 36].

    The mean of the F1 of kept n-grams, the F1 of added ones and the precision of deleted ones, each averaged over the
    orders. Counts are summed over the corpus first: copying deletes and adds nothing and scores only by what it keeps,
    while a mean over texts would count an empty deletion as a precision of 1.
    """
    kept_rightly, kept, to_keep, added_rightly, added, to_add, deleted_rightly, deleted, to_delete = np.moveaxis(
        sums.reshape(*sums.shape[:-1], ORDER, _SARI_COUNTS), -1, 0
    )
    keep = f1(_ratio(kept_rightly, kept, to_keep), _ratio(kept_rightly, to_keep, kept))
    add = f1(_ratio(added_rightly, added, to_add), _ratio(added_rightly, to_add, added))
    delete = _ratio(deleted_rightly, deleted, to_delete)
    return np.asarray((keep + add + delete).mean(axis=-1) / 3)


def ngrams(text: Words, n: int) -> Counter[Ngram]:
    """The count of each n-gram of `n` words."""
    return Counter(zip(*(text[at:] for at in range(n)), strict=False))


def f1(precision: Floats, recall: Floats) -> Floats:
    """Their harmonic mean."""
    both = precision + recall
    return np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)


def _times(counts: Counter[Ngram], factor: int) -> Counter[Ngram]:
    return Counter({ngram: factor * count for ngram, count in counts.items()})


def _ratio(part: Floats, whole: Floats, counterpart: Floats) -> Floats:
    """Their ratio; if the whole is empty 1, or 0 if the counterpart is not."""
    return np.divide(part, whole, out=np.where(counterpart > 0, 0.0, 1.0), where=whole > 0)


def is_exact(output: str, references: Sequence[str]) -> bool:
    """Whether it equals a reference, except for white space."""
    return normalised(output) in map(normalised, references)


def normalised(text: str) -> str:
    """The text with single spaces."""
    return " ".join(text.split())
