"""The report's figures of conversions and trainings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from smolmoe.core.statistics import FEWEST_DOCUMENTS, Interval, evidence, no_finding
from smolmoe.evaluation.held_out import paired_difference
from smolmoe.hub.model_facts import ModelFacts
from smolmoe.reports.blocks import Chart, plotted, show
from smolmoe.reports.names import Looks, colour, marker
from smolmoe.reports.overview import Boundary, Training
from smolmoe.reports.plot import axes, bars, by_step, line, mark


def boundary_chart(boundary: Boundary, name: str, looks: Looks) -> Chart:
    """Held-out loss over training tokens, the conversion marked."""
    traces = [line(label, points, looks(label)) for label, points in boundary.curves.items()]
    layout = axes("training tokens", "held-out loss (nats per token)", xaxis_exponentformat="SI")
    if boundary.at:
        mark(layout, boundary.at, "conversion")
    seen = [loss for points in boundary.curves.values() for tokens, loss in points if tokens >= boundary.at / 2]
    if seen:  # without the steep first steps of training from scratch
        room = 0.08 * (max(seen) - min(seen) or 1)
        layout["yaxis"]["range"] = [min(seen) - room, max(seen) + room]
    head, rows = by_step("tokens", boundary.curves, lambda tokens: f"{tokens:,.0f}")
    return Chart(
        name,
        f"Held-out loss across the conversion: {boundary.label}",
        f"{boundary.tokens:,} tokens of {boundary.documents:,} documents, lower is better. An exact conversion leaves "
        "no step at the line; after it, all models train on the same tokens.",
        traces,
        layout,
        head,
        rows,
        height=420,
    )


def claim_chart(models: Sequence[tuple[str, ModelFacts]], looks: Looks) -> Chart | None:
    """Each check's measurement as a share of its limit."""
    traces, rows = [], []
    for label, model in models:
        found = (model.provenance.get("verification") or {}).get("checks") or ()
        checks = [c for c in found if float(c["limit"]) > 0 and math.isfinite(float(c["measured"]))]
        if not checks:
            continue
        kept = [c for c in checks if c["name"] != "control"]
        shares = [max(c["measured"] / c["limit"], 1e-6) for c in kept]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": label,
                "x": shares,
                "y": [c["name"] for c in kept],
                "marker": marker(looks(label), 11),
                "hovertemplate": "%{x:.2g} of the limit<extra>%{y}</extra>",
            }
        )
        rows += [[label, c["name"], float(c["measured"]), float(c["limit"]), bool(c["passed"])] for c in checks]
    if not traces:
        return None
    layout = axes(
        "measured / limit", "", xaxis_type="log", xaxis_dtick=1, yaxis_automargin=True, yaxis_autorange="reversed"
    )
    mark(layout, 1, "limit", log=True)
    layout["annotations"][0] |= {"y": 0.02, "yanchor": "bottom"}
    return Chart(
        "checks",
        "How far each check is below its limit",
        "Points left of the line pass; a measurement of 0 is at the left edge.",
        traces,
        layout,
        ["model", "check", "measured", "limit", "passed"],
        rows,
        height=120 + 34 * len({row[1] for row in rows}),
    )


# -- trainings -------------------------------------------------------------------------------------------------------


def final_chart(done: Sequence[Training], name: str, looks: Looks) -> Chart | None:
    """Final held-out losses of comparable runs, by domain, above the lowest one."""
    if len(done) < 2:
        return None
    kinds = _kinds(done)
    found = {kind: [_loss(run, kind) for run in done] for kind in kinds}
    best = {kind: min((value for value in found[kind] if value is not None), default=0.0) for kind in kinds}
    spread = min(0.12, 0.7 / len(done))
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": run.label,
            "x": [None if (value := found[kind][place]) is None else value - best[kind] for kind in kinds],
            "y": [row + spread * (place - (len(done) - 1) / 2) for row in range(len(kinds))],
            "text": [f"{kind}: {show(found[kind][place])}" for kind in kinds],
            "error_x": _bars([above(run, kind, done) for kind in kinds], looks(run.label)),
            "marker": _filled_where_enough(run, kinds, looks(run.label)),
            "hovertemplate": "%{text}, %{x:+.4f}<extra>%{fullData.name}</extra>",
        }
        for place, run in enumerate(done)
    ]
    layout = axes("held-out loss above the lowest one here (nats per token)", "", yaxis_autorange="reversed")
    layout["yaxis"] |= {"tickvals": list(range(len(kinds))), "ticktext": [plotted(kind) for kind in kinds]}
    head, rows = final_rows(done)
    head = [*head, "all, above the lowest"]
    rows = [[*row, _said(above(run, "all", done), run)] for row, run in zip(rows, done, strict=True)]
    return Chart(
        name,
        f"Final held-out loss: {', '.join(run.label for run in done)}",
        "Lower is better, 0 is the lowest loss in that row; a bar is the 95% interval of the distance from it over "
        "documents: if it includes 0, no difference is seen. Hollow: too few documents for a finding (fewer than "
        f"{FEWEST_DOCUMENTS}). These runs have a common ancestor or are compared by "
        "their pipeline, and were measured on the same held-out text.",
        traces,
        layout,
        head,
        rows,
        height=150 + (30 + 7 * min(len(done), 12)) * len(kinds) + 20 * (len(done) // 4),
    )


def above(run: Training, kind: str, others: Sequence[Training]) -> Interval | None:
    """A run's loss minus the lowest one, with its interval over documents; None for the lowest."""
    losses = {other.label: loss for other in others if (loss := _loss(other, kind)) is not None}
    best = min(others, key=lambda other: losses.get(other.label, math.inf))
    if run is best or run.documents is None or best.documents is None or run.label not in losses:
        return None
    parts = [found.documents.part(None if kind == "all" else kind) for found in (run, best) if found.documents]
    few = len(parts[0].tokens) < FEWEST_DOCUMENTS and kind != "all"  # the interval would be misleading
    return None if few or not parts[0].tokens else Interval(*paired_difference(*parts))


def _bars(gaps: Sequence[Interval | None], place: int) -> dict[str, Any]:
    """plotly's bars; none without an interval."""
    return bars([(0, 0, 0) if gap is None else (gap.value, gap.low, gap.high) for gap in gaps], colour(place))


def _filled_where_enough(run: Training, kinds: Sequence[str], place: int) -> dict[str, Any]:
    """The run's marker, hollow with too few documents for a finding."""
    found = marker(place)
    few = [run.documents is not None and _count(run, kind) < FEWEST_DOCUMENTS for kind in kinds]
    return {**found, "symbol": [f"{found['symbol']}{'-open' if hollow else ''}" for hollow in few]}


def _count(run: Training, kind: str) -> int:
    assert run.documents is not None
    return len(run.documents.part(None if kind == "all" else kind).tokens)


def _said(gap: Interval | None, run: Training) -> str | None:
    if gap is None or run.documents is None:
        return None
    documents = len(run.documents.tokens)
    return no_finding(gap, documents) or evidence(gap, documents)


def _kinds(runs: Sequence[Training]) -> list[str]:
    domains = sorted({name for run in runs for name in run.summary["held_out"].get("by_domain", {})})
    return ["all", *(domains if len(domains) > 1 else [])]


def _loss(run: Training, kind: str) -> float | None:
    held = run.summary["held_out"]
    return held["loss"] if kind == "all" else held.get("by_domain", {}).get(kind)


def final_rows(runs: Sequence[Training]) -> tuple[list[str], list[list[Any]]]:
    """Each run's final losses and cost."""
    kinds = _kinds(runs)
    head = ["run", *kinds, "parameters", "active", "training tokens", "FLOPs", "held-out tokens"]
    return head, [
        [run.label, *(_loss(run, kind) for kind in kinds), *_cost(run), run.summary["held_out"].get("tokens")]
        for run in runs
    ]


def _cost(run: Training) -> list[Any]:
    sizes = run.summary.get("parameters") or {}
    return [sizes.get("total"), sizes.get("active"), run.summary.get("tokens"), run.summary.get("flops")]


def by_domain_rows(boundary: Boundary) -> tuple[list[str], list[list[Any]]]:
    """Final held-out losses of the runs in each domain."""
    domains = list(next(iter(boundary.by_domain.values())))
    return ["model", *domains], [[label, *map(found.get, domains)] for label, found in boundary.by_domain.items()]
