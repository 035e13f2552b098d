"""BLEU, GLEU and SARI against published values, values made by hand, and what must always hold."""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import sacrebleu

from smolmoe.data.prompts import read_corrections
from smolmoe.errors import RequestError
from smolmoe.evaluation import text_metrics
from smolmoe.evaluation.text_metrics import (
    METRICS,
    ORDER,
    WIDTH,
    Corrected,
    draw_rows,
    f1,
    gleu_of,
    gleu_statistics,
    intervals,
    is_exact,
    metrics_of,
    row_statistics,
    sari_of,
    sari_statistics,
    words,
)

SPECIES = "About 95 species are currently accepted ."
SPECIES_REFERENCES = (
    "About 95 species are currently known .",
    "About 95 species are now accepted .",
    "95 species are now accepted .",
)


def sari_counts(source: str, output: str, *references: str) -> np.ndarray:
    return np.array(sari_statistics(source.split(), output.split(), [reference.split() for reference in references]))


def sari(source: str, output: str, *references: str) -> float:
    return float(100 * sari_of(sari_counts(source, output, *references)))


def gleu(source: str, output: str, *references: str) -> float:
    split = [reference.split() for reference in references]
    return float(100 * gleu_of(np.array(gleu_statistics(source.split(), output.split(), split))))


def corpus(rows: list[Corrected]) -> dict[str, float]:
    values = metrics_of(np.sum([row_statistics(row) for row in rows], axis=0))
    return dict(zip(METRICS, values.tolist(), strict=True))


@pytest.fixture(scope="module")
def jfleg(shared: Path) -> list[Corrected]:
    """Real sentences with several corrections each; the output is the first of them, with some words left out."""
    rng = random.Random(0)
    rows = read_corrections(shared / "data" / "gec_jfleg_coedit_schema.jsonl", rows=120)
    return [
        Corrected(
            row.source, " ".join(word for word in row.references[0].split() if rng.random() > 0.1), row.references
        )
        for row in rows
    ]


def test_sari_of_the_published_example() -> None:
    """As the `evaluate` library's SARI card and EASSE's README have it, for sentences by Xu et al. (2016)."""
    assert sari(SPECIES, "About 95 you now get in .", *SPECIES_REFERENCES) == pytest.approx(26.953601953601954)


def test_the_counts_of_a_published_corpus() -> None:
    """EASSE's README has 33.1747... of these two texts, with F1 of what was deleted for the paper's precision."""
    cat = ("the cat sat on the mat .", "the cat is on the mat .", "the cat sat .")
    counts = sari_counts(SPECIES, "About 95 you now get in .", *SPECIES_REFERENCES)
    counts += sari_counts("the cat perched on the mat .", "cat on mat .", *cat)
    rightly, deleted, to_delete = counts.reshape(ORDER, 9)[:, 6:].T
    precision, recall = rightly / deleted, rightly / to_delete
    by_precision = float(100 * sari_of(counts))
    by_f1 = by_precision + 100 * float((f1(precision, recall) - precision).mean()) / 3
    assert by_f1 == pytest.approx(33.17472563619544)


def test_sari_by_hand() -> None:
    """Source "a b c", output "a d c", reference "a d".

    Words: kept {a, c}, to keep {a}: precision 1/2, recall 1, F1 2/3; added {d} rightly: 1; deleted {b} rightly: 1.
    Pairs: nothing kept and nothing to keep: 1; added {a d, d c}, to add {a d}: F1 2/3; deleted {a b, b c} rightly: 1.
    Three: nothing kept or to keep: 1; added {a d c}, nothing to add: 0; deleted {a b c} rightly: 1.
    Four: nothing anywhere: 1 each.
    """
    keep, add, delete = (2 / 3 + 1 + 1 + 1) / 4, (1 + 2 / 3 + 0 + 1) / 4, 1.0
    assert sari("a b c", "a d c", "a d") == pytest.approx(100 * (keep + add + delete) / 3)


def test_copying_scores_by_what_is_kept_alone() -> None:
    source, reference = "he go to the school today", "he goes to school today"
    keeps = []
    for n in range(1, ORDER + 1):
        given = {tuple(source.split()[at : at + n]) for at in range(7 - n)}
        wanted = {tuple(reference.split()[at : at + n]) for at in range(6 - n)}
        both = len(given & wanted)
        precision, recall = both / len(given), both / max(1, both)
        keeps.append(2 * precision * recall / (precision + recall) if both else 0.0 if given else 1.0)
    # Of three and four words the reference keeps none: kept wrongly, nothing to keep.
    assert sari(source, source, reference) == pytest.approx(100 * sum(keeps) / ORDER / 3)


def test_sari_of_a_corpus_sums_counts_first() -> None:
    one, other = sari_counts("a b c d e", "a b c d f", "a b c d f"), sari_counts("a b c d e", "a b c d e", "a b c d g")
    # Two copies of one text are that text; of two texts it is neither's, nor their mean.
    assert float(sari_of(one * 2)) == pytest.approx(float(sari_of(one)))
    apart, together = [float(sari_of(one)), float(sari_of(other))], float(sari_of(one + other))
    assert min(apart) < together < max(apart)
    assert together != pytest.approx(sum(apart) / 2, abs=1e-3)


def test_a_word_that_stands_twice_is_deleted_once_rightly() -> None:
    """By the paper: deleted once of what the reference has less often than the source, even if it has it still."""
    assert sari("he said that that is", "he said that is", "he said that is") == pytest.approx(100)


def test_gleu_by_hand() -> None:
    """Source "the cat sit on mat", output "the cat sits on mat", reference "the cat sits on the mat".

    Of the output's 5, 4, 3, 2 n-grams, 5, 3, 2, 1 are the reference's ("on mat" is not, but the source's: 3 - 1; three
    words "sits on mat" are neither's; four "cat sits on mat" neither's). Five words for six: exp(1 - 6/5).
    """
    expected = math.exp(1 - 6 / 5) * (5 / 5 * 2 / 4 * 2 / 3 * 1 / 2) ** 0.25
    found = gleu("the cat sit on mat", "the cat sits on mat", "the cat sits on the mat")
    assert found == pytest.approx(100 * expected)


def test_gleu_without_a_source_is_bleu() -> None:
    output, reference = "the cat sits on mat now", "the cat sits on the mat now"
    bleu = sacrebleu.corpus_bleu([output], [[reference]], smooth_method="none").score
    assert gleu("", output, reference) == pytest.approx(bleu)
    assert gleu("a mat now", output, reference) == pytest.approx(bleu)  # what the reference keeps costs nothing
    assert gleu("on mat", output, reference) < bleu


def test_gleu_of_several_references_is_about_the_mean_of_random_ones(jfleg: list[Corrected]) -> None:
    """The definition's 500 draws of one reference a text, against the mean statistics."""
    rng = np.random.default_rng(0)
    each = []
    for row in jfleg:
        split = words(row.source), words(row.output)
        each.append([gleu_statistics(*split, [words(reference)]) for reference in row.references])
    drawn = [gleu_of(np.sum([of[rng.integers(len(of))] for of in each], axis=0)) for _ in range(500)]
    assert corpus(jfleg)["gleu"] == pytest.approx(100 * float(np.mean(drawn)), abs=0.1)


def test_bleu_is_sacrebleus_with_any_number_of_references(jfleg: list[Corrected]) -> None:
    most = max(len(row.references) for row in jfleg)
    assert len({len(row.references) for row in jfleg}) > 1
    streams = [[row.references[at] if at < len(row.references) else None for row in jfleg] for at in range(most)]
    expected = sacrebleu.corpus_bleu([row.output for row in jfleg], streams).score  # type: ignore[arg-type]
    assert corpus(jfleg)["bleu"] == pytest.approx(expected)


def test_the_reference_itself_has_full_marks_and_nonsense_none(jfleg: list[Corrected]) -> None:
    perfect = [Corrected(row.source, row.references[0], row.references[:1]) for row in jfleg]
    assert corpus(perfect) == pytest.approx(dict.fromkeys(METRICS, 100.0))
    nonsense = corpus([Corrected(row.source, "xyzzy", row.references) for row in jfleg])
    assert nonsense["gleu"] == nonsense["exact_match"] == nonsense["bleu"] == 0
    assert corpus([Corrected(row.source, "", row.references) for row in jfleg])["bleu"] == 0


def test_the_order_of_references_and_of_rows_does_not_matter(jfleg: list[Corrected]) -> None:
    turned = [Corrected(row.source, row.output, row.references[::-1]) for row in reversed(jfleg)]
    assert corpus(turned) == pytest.approx(corpus(jfleg))


def test_leaving_errors_costs_gleu_more_than_bleu() -> None:
    """Two wrong words for another right one: equal for BLEU; the one that copies the source's is worse by GLEU."""
    source, reference = "he have gone to the old school today", "he had gone to the old school today"
    copied, other = source, source.replace("have", "has")
    rows = [Corrected(source, text, (reference,)) for text in (copied, other)]
    (bleu, gleu_copied), (bleu_other, gleu_other) = ((corpus([row])["bleu"], corpus([row])["gleu"]) for row in rows)
    assert bleu == pytest.approx(bleu_other)
    assert gleu_copied < gleu_other


def test_exact_match_ignores_only_white_space() -> None:
    assert is_exact("He  goes.\n", ("She goes.", "He goes."))
    assert not is_exact("he goes.", ("He goes.",))


def test_the_intervals_hold_the_value_and_are_as_wide_as_the_spread() -> None:
    """Of 400 texts a quarter exact: a standard error of 2.2 points, so 4.2 on either side."""
    statistics = np.stack([row_statistics(Corrected("b c", "a" if at % 4 else "b", ("b",))) for at in range(400)])
    assert statistics.shape == (400, WIDTH)
    drawn = metrics_of(draw_rows(400) @ statistics)
    found = intervals(metrics_of(statistics.sum(0)), drawn)["exact_match"]
    assert found.value == 25
    assert found.low == pytest.approx(25 - 4.24, abs=0.8)
    assert found.high == pytest.approx(25 + 4.24, abs=0.8)


def test_words_are_sacrebleus() -> None:
    assert words('He said, "go".') == ["He", "said", ",", '"', "go", '"', "."]


def test_without_sacrebleu_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    text_metrics._bleu.cache_clear()
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    with pytest.raises(RequestError, match=r"smolmoe\[align\]"):
        row_statistics(Corrected("a", "b", ("c",)))
    text_metrics._bleu.cache_clear()
