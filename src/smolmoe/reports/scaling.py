"""The figure of a sweep: losses by training tokens, the law through them, and what each 10x of tokens gains."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from smolmoe.core import units
from smolmoe.reports.figures import Band, Figure, Level, Lines, Points, Series
from smolmoe.results.scaling_law import Curve, Gain, HeldOutFacts, Prediction, Sweep

_ROW = 0.3  # inches of a row of the right panel


def sweep_figure(sweep: Sweep, *, name: str = "sweep", places: Sequence[int] | None = None) -> Figure:
    """The losses of a sweep with their law on the left, what each 10x of tokens gains on the right."""
    title = f"Held-out loss by training tokens: {sweep.recipe}"
    return curves_figure(
        sweep.curves, largest=sweep.largest, name=name, title=title, held_out=sweep.held_out, places=places
    )


def curves_figure(
    curves: Sequence[Curve],
    *,
    largest: int,
    name: str,
    title: str,
    held_out: HeldOutFacts,
    places: Sequence[int] | None = None,
) -> Figure:
    """The same for curves of several sweeps that were measured on the same text.

    Args:
        largest: budget of all.
        held_out: the text.
        places: of the curves in the page's `Looks`; default in order.
    """
    looks = dict(enumerate(places or range(len(curves))))
    gains = [(curve, gain, looks[index]) for index, curve in enumerate(curves) for gain in _gains(curve)]
    text = f"{held_out.tokens:,} held-out tokens of {held_out.documents:,} documents"
    return Figure(
        name,
        title,
        f"Loss on {text}. Filled dots are budgets, hollow ones single runs; bars and bands are 95% intervals. Hatched: "
        "beyond the largest budget; grey: beyond ten times it, where the law is a guess that no interval measures.",
        [_losses(curves, largest, looks), _gains_panel(gains, several=len(curves) > 1)],
        per_row=2,
        inches=max(4.0, 1.3 + _ROW * len(gains)),
    )


def _losses(curves: Sequence[Curve], largest: int, looks: dict[int, int]) -> Lines:
    farthest = max(place.tokens for curve in curves for place in (*curve.band, *curve.budgets))
    low, high = _range(curves)
    marks = [Level("largest budget", largest, upright=True)] if farthest > largest else []
    marks += [Level("beyond 10×: a guess", 10 * largest, upright=True)] if farthest > 10 * largest else []
    starts = [curve.start_loss for curve in curves if curve.start_loss is not None]
    marks += [Level("before", start) for start in starts[:1] if low < start < high]
    return Lines(
        "",
        "training tokens",
        "held-out loss (nats per token)",
        [series for index, curve in enumerate(curves) for series in _series(curve, looks[index])],
        [band for index, curve in enumerate(curves) for band in _bands(curve, looks[index])],
        marks=marks,
        bottom=low,
        top=high,
        shaded=(10 * largest, farthest) if farthest > 10 * largest else None,
        scale="log",
    )


def _bands(curve: Curve, place: int) -> list[Band]:
    known = [one for one in curve.band if one.reach == "measured"]
    beyond = [*known[-1:], *(one for one in curve.band if one.reach != "measured")]
    parts = ((known, False), (beyond, True))
    return [
        Band("", [o.tokens for o in part], [o.loss.low for o in part], [o.loss.high for o in part], place, hatched)
        for part, hatched in parts
        if len(part) > 1
    ]


def _series(curve: Curve, place: int) -> list[Series]:
    runs = [(point.tokens, point.loss) for point in curve.points]
    several = any(point.seed != curve.points[0].seed for point in curve.points)
    return [
        Series("", _points(curve.band), place, bare=True),
        *([Series("", runs, place, dots=True, hollow=True)] if several else []),
        Series(_label(curve), _points(curve.budgets), place, _spans(curve.budgets), dots=True),
    ]


def _points(places: Iterable[Prediction]) -> Points:
    return [(one.tokens, one.loss.value) for one in places]


def _spans(places: Iterable[Prediction]) -> list[tuple[float, float]]:
    return [(one.loss.low, one.loss.high) for one in places]


def _label(curve: Curve) -> str:
    law = curve.law
    if law is None:
        return f"{curve.name} (no law: too few budgets)"
    if not law.identified:
        return f"{curve.name} (exponent not identified)"
    exponent = law.exponent
    return f"{curve.name}: α {exponent.value:.2f} [{exponent.low:.2f}, {exponent.high:.2f}]"


def _range(curves: Sequence[Curve]) -> tuple[float, float]:
    """Of the losses shown: a wide interval is cut, not the points."""
    measured = [getattr(place.loss, end) for curve in curves for place in curve.budgets for end in ("low", "high")]
    measured += [point.loss for curve in curves for point in curve.points]
    measured += [curve.start_loss for curve in curves if curve.start_loss is not None]
    law = [place.loss.value for curve in curves for place in curve.band]
    low, high = min(measured + law), max(measured + law)
    span = (high - low) or 0.01
    bands = [getattr(place.loss, end) for curve in curves for place in curve.band for end in ("low", "high")]
    low = max(min([low, *bands]), low - 0.6 * span)
    high = min(max([high, *bands]), high + 0.2 * span)
    return low - 0.06 * span, high + 0.1 * span


def _gains(curve: Curve) -> Sequence[Gain]:
    """What each 10x gains; without a law, what each budget gained over the one before."""
    return curve.tenfold or curve.neighbours


def _gains_panel(gains: Sequence[tuple[Curve, Gain, int]], *, several: bool) -> Lines:
    tenfold = all(gain.end == 10 * gain.begin for _, gain, _ in gains)
    return Lines(
        "What 10× the tokens buys" if tenfold else "What more tokens bought",
        "loss reduction (nats per token); hollow: extrapolated",
        "",
        [
            Series(
                "",
                [(gain.drop.value, row)],
                place,
                [(gain.drop.low, gain.drop.high)],
                dots=True,
                hollow=gain.reach != "measured",
            )
            for row, (_, gain, place) in enumerate(gains)
        ],
        marks=[Level("", 0, upright=True)],
        rows=[_row(curve, gain, several=several) for curve, gain, _ in gains],
    )


def _row(curve: Curve, gain: Gain, *, several: bool) -> str:
    steps = f"{units.tokens(gain.begin)} → {units.tokens(gain.end)}"
    return f"{curve.name}\n{steps}" if several else steps
