"""The report's figures and tables of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from smolmoe.core import units
from smolmoe.core.statistics import Interval
from smolmoe.reports.blocks import Chart
from smolmoe.reports.names import Looks, colour, marker
from smolmoe.reports.plot import axes, bars, plot
from smolmoe.reports.scaling import sweep_figure
from smolmoe.results.scaling_law import Curve, Fold, Power, Sweep


def sweep_chart(sweep: Sweep, name: str, looks: Looks) -> Chart | None:
    """Losses by training tokens with their law, and what each 10x of tokens gains."""
    if not sweep.curves:
        return None
    figure = sweep_figure(sweep, name=name, places=[looks(_look(sweep, curve)) for curve in sweep.curves])
    return replace(
        plot(figure),
        caption=f"{figure.caption} {sweep.uncertainty.text}",
        head=["curve", "tokens", "steps", "seed", "loss (nats per token)", "FLOPs"],
        rows=[[c.name, p.tokens, p.steps, p.seed, p.loss, p.flops] for c in sweep.curves for p in c.points],
    )


def _look(sweep: Sweep, curve: Curve) -> str:
    """A curve is not a model: it has a separate look."""
    return f"sweep of {sweep.recipe}: {curve.name}"


def sweep_rows(sweep: Sweep) -> tuple[list[str], list[list[Any]]]:
    """The gain of each 10x of data."""
    rows = [
        [curve.name, f"{gain.begin:,}", f"{gain.end:,}", _signed(gain.drop), gain.reach]
        for curve in sweep.curves
        for gain in (*curve.neighbours, *curve.tenfold)
    ]
    return ["curve", "from (tokens)", "to (tokens)", "loss reduction (nats per token)", "basis"], rows


def needs_chart(sweep: Sweep, name: str, looks: Looks) -> Chart | None:
    """The multiples of the data on a logarithmic axis, with intervals."""
    traces = []
    for curve in sweep.curves:
        needs = curve.power.needs if curve.power else ()
        place = looks(_look(sweep, curve))
        without_floor = [(need.lower, need.fold) for need in needs]
        with_floor = [(n.lower, n.law_fold) for n in needs if n.law_fold and n.fold.value is not None]
        traces += _fold_trace(f"{curve.name}, no floor", without_floor, place, marker(place))
        look = {**marker(place), "symbol": "diamond-open"}
        traces += _fold_trace(f"{curve.name}, law with its floor", with_floor, place, look)
    if not traces:
        return None
    head, rows = sweep_needs(sweep)
    x = {"xaxis_type": "log", "xaxis_dtick": 1}
    return Chart(
        name,
        f"Data needed for a lower perplexity: {sweep.model}",
        "Multiples of the largest budget, with 95% intervals. The power law of perplexity has no floor, so it gives "
        "the minimum. Past ten times the largest budget, both are a guess.",
        traces,
        axes("multiple of the data", "lower perplexity", yaxis_type="category", yaxis_range=[-0.5, 2.5], **x),
        head,
        rows,
        height=300,
    )


def _fold_trace(
    name: str, needs: Sequence[tuple[float, Fold]], place: int, look: dict[str, Any]
) -> list[dict[str, Any]]:
    """One trace, or none without values."""
    known = [(lower, fold, fold.value) for lower, fold in needs if fold.value is not None]
    if not known:
        return []
    highest = 1e3 * max(value for _, _, value in known)
    ends = [(value, fold.low or value, fold.high or highest) for _, fold, value in known]
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "x": [value for _, _, value in known],
            "y": [f"{lower:.0%}" for lower, _, _ in known],
            "error_x": bars(ends, colour(place)),
            "marker": look,
            "hovertemplate": "%{x:.3s} times the data for %{y}<extra>%{fullData.name}</extra>",
        }
    ]


def sweep_needs(sweep: Sweep) -> tuple[list[str], list[list[Any]]]:
    """The data that a lower perplexity needs."""
    head = ["curve", "lower perplexity", "loss reduction (nats per token)", "times the data, no floor"]
    rows = [
        [
            curve.name,
            f"{need.lower:.0%}",
            f"{need.nats:.3f}",
            *(fold and units.times(fold.value, fold.low, fold.high) for fold in (need.fold, need.law_fold)),
            None if need.tokens is None else units.tokens(need.tokens),
            need.reach,
        ]
        for curve in sweep.curves
        for need in (curve.power.needs if curve.power else ())
    ]
    return [*head, "times the data, law with its floor", "tokens", "basis"], rows


def sweep_laws(sweep: Sweep) -> list[str]:
    """Sentences on the fitted laws, or why a law is missing."""
    said = []
    for curve in sweep.curves:
        said += [f"{curve.name}: {_power(curve.power)}"] if curve.power else []
        law = curve.law
        if law is None:
            said.append(f"{curve.name}: no law. {curve.reason or ''}".strip())
            continue
        parts = {"offset": law.offset, "scale": law.scale, "exponent": law.exponent}
        shown = ", ".join(f"{key} {v.value:.3g} [{v.low:.3g}, {v.high:.3g}]" for key, v in parts.items())
        sure = "" if law.identified else " The points do not determine it."
        said.append(f"{curve.name}: loss = offset + scale × tokens^−exponent, {shown}.{sure}")
    return [*said, *sweep.warnings]


def _power(power: Power) -> str:
    share, nats = power.tenfold_share, power.tenfold
    return (
        f"each 10x of data gives {share.value:.1%} lower perplexity [{share.low:.1%}, {share.high:.1%}], "
        f"{nats.value:.4f} [{nats.low:.4f}, {nats.high:.4f}] nats per token."
    )


def _signed(found: Interval) -> str:
    return f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
