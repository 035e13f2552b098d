"""Numbers as people read them: at the places where a prefix changes, and for each kind of quantity."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import smolmoe
from smolmoe.core import units


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "0"),
        (999, "999"),
        (999.6, "1.00 K"),
        (1000, "1 K"),
        (9_996, "10.0 K"),
        (999_499, "999 K"),
        (999_500, "1.00 M"),
        (999_999, "1.00 M"),
        (1_234_567, "1.23 M"),
        (999_999_999, "1.00 B"),
        (1.2e9, "1.2 B"),
        (999_500_000_000, "1.00 T"),
        (1.5e15, "1,500 T"),
        (-1_500_000, "-1.5 M"),
    ],
)
def test_parameters_and_tokens(number: float, said: str) -> None:
    assert units.parameters(number) == units.tokens(number) == said


def test_bytes_and_flops_have_prefixes_of_their_own() -> None:
    assert [units.size(n) for n in (999, 999_999, 1.4e9, 2e12)] == ["999 B", "1.00 MB", "1.4 GB", "2 TB"]
    assert [units.flops(n) for n in (512, 1.2e9, 999_999_999_999, 3.456e18)] == [
        "512 FLOPs",
        "1.2 GFLOPs",
        "1.00 TFLOPs",
        "3.46 EFLOPs",
    ]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0123, "12.3 ms"), (0.9996, "1.00 s"), (61, "61 s"), (120, "2 min"), (7200, "2 h"), (172_800, "2 days")],
)
def test_durations(seconds: float, said: str) -> None:
    assert units.duration(seconds) == said


def test_nobody_else_scales_numbers_for_people() -> None:
    """A division by a power of a thousand inside an f-string is a formatter of its own."""
    source = Path(smolmoe.__file__).parent
    own = re.compile(r"\{[^{}\n]*/ ?(1e3|1e6|1e9|1e12|1000\b|1_000_000|2\*\*\d0)[^{}\n]*:[^{}\n]*\}")
    found = [
        f"{path.relative_to(source)}: {line.strip()}"
        for path in source.rglob("*.py")
        if path.name != "units.py"
        for line in path.read_text(encoding="utf-8").splitlines()
        if own.search(line)
    ]
    assert not found
