"""The one rule of what is a finding."""

from __future__ import annotations

import pytest

from smolmoe.core.statistics import (
    FEWEST_DOCUMENTS,
    Interval,
    above_chance,
    enough_tokens,
    least_share,
    no_finding,
    side,
    too_few,
)


@pytest.mark.parametrize(
    ("gap", "documents", "expected"),
    [
        (Interval(-0.1, -0.2, -0.05), 6, "lower"),
        (Interval(0.1, 0.05, 0.2), 40, "higher"),
        (Interval(0.1, -0.01, 0.2), 400, "none"),
        (Interval(0.0, 0.0, 0.0), 40, "none"),
        (Interval(4e-5, 3e-5, 5e-5), 400, "none"),  # sure, but rounding
        (Interval(0.9, 0.8, 1.0), 5, "few"),
        (Interval(0.9, 0.9, 0.9), 1, "few"),
    ],
)
def test_sides(gap: Interval, documents: int, expected: str) -> None:
    assert side(gap, documents) == expected
    assert (no_finding(gap, documents) is None) == (expected in ("lower", "higher"))


def test_the_fewest_documents_are_those_that_chance_seldom_makes_agree() -> None:
    assert 2 / 2**FEWEST_DOCUMENTS < 0.05 < 2 / 2 ** (FEWEST_DOCUMENTS - 1)


def test_words() -> None:
    said = "no difference seen: +0.0010 nats per token, 95% interval [-0.0020, +0.0040] over 12 documents"
    assert no_finding(Interval(0.001, -0.002, 0.004), 12) == said
    assert "over 1 document" in str(no_finding(Interval(0.1, 0.1, 0.1), 1))
    assert too_few({"code": 6, "web": 60}) is None
    assert too_few({"code": 5, "web": 60}) == "too few documents for a finding (code 5; at least 6 of each domain)"


def test_shares_tokens_and_layers() -> None:
    assert least_share(0.05, 20) < 0.01 < least_share(0.05, 1000)  # one tie in 20 tokens may be chance
    assert not enough_tokens(20, 2, 8)
    assert enough_tokens(64, 2, 8)
    assert above_chance(1, 1)
    assert not above_chance(1, 6)
    assert above_chance(2, 6)
    assert not above_chance(0, 6)
