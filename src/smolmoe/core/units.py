"""Numbers as people read them, the one place for it: three significant digits and a prefix."""

from __future__ import annotations

from collections.abc import Sequence

_COUNTS = ("", "K", "M", "B", "T")
_BYTES = ("B", "kB", "MB", "GB", "TB", "PB")
_FLOPS = ("FLOPs", "kFLOPs", "MFLOPs", "GFLOPs", "TFLOPs", "PFLOPs", "EFLOPs", "ZFLOPs", "YFLOPs")


def count(number: float) -> str:
    """Of rows, tokens, parameters: 1234567 as "1.23 M", 1.2e9 as "1.2 B"."""
    return _scaled(number, _COUNTS)


parameters = tokens = count


def model_size(total: int | None, active: int | None) -> str:
    """Parameters of a model: "4.85 M, 1.61 M active"; empty if no number is known."""
    if total is None or active is None:
        return ""
    return count(total) + (f", {count(active)} active" if active < total else "")


def size(nbytes: float) -> str:
    """Bytes in powers of 1000: 1400000000 as "1.4 GB"."""
    return _scaled(nbytes, _BYTES)


def flops(number: float) -> str:
    """1.2e9 as "1.2 GFLOPs"."""
    return _scaled(number, _FLOPS)


def times(fold: float | None, low: float | None = None, high: float | None = None) -> str:
    """A factor with its interval: "14.1x [9.2x, 31x]"; None is no amount, or no end."""
    if fold is None:
        return "no amount"
    ends = ("-" if low is None else f"{count(low)}x", "no end" if high is None else f"{count(high)}x")
    return f"{count(fold)}x [{', '.join(ends)}]"


def duration(seconds: float) -> str:
    """In the unit that suits it: "850 ms", "12.3 s", "45 min", "3.2 h", "2.5 days"."""
    if seconds < 0.9995:
        return f"{_digits(1000 * seconds)} ms"
    for factor, until, unit in ((1, 119.5, "s"), (60, 7170, "min"), (3600, 172_800, "h")):
        if seconds < until:
            return f"{_digits(seconds / factor)} {unit}"
    return f"{_digits(seconds / 86400)} days"


def _scaled(number: float, prefixes: Sequence[str]) -> str:
    """Three digits before a prefix; what would round to 1000 of one is 1 of the next."""
    place = 0
    while place < len(prefixes) - 1 and abs(number) >= 999.5 * 1000**place:
        place += 1
    return f"{_digits(number / 1000**place)} {prefixes[place]}".strip()


def _digits(number: float) -> str:
    """Three significant digits without an exponent; zeros at the end only where they were rounded to."""
    short = f"{number:.3g}"
    if abs(number) >= 999.5:
        return f"{number:,.0f}"
    if float(short) == number or abs(number) < 0.995:
        return short
    return f"{number:.{2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0}f}"
