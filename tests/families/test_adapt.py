"""Mends of the tensors outside the FFNs."""

from __future__ import annotations

import pytest

from smolmoe.families.adapt import half_split, interleaved


@pytest.mark.parametrize("rotary", [2, 4, 8])
def test_interleaving_is_the_inverse_of_half_splitting(rotary: int) -> None:
    rows = list(range(rotary))
    halves = [rows[row] for row in half_split(rotary)]
    assert [halves[row] for row in interleaved(rotary)] == rows
    assert rotary == 2 or halves != rows


def test_rows_in_front_stay() -> None:
    assert interleaved(4, 3) == (0, 1, 2, 3, 5, 4, 6)
