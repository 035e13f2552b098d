"""The report's figures of conversions, trainings and probes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import numpy as np

from smolmoe.core.interval import FEWEST_DOCUMENTS, Interval, evidence, no_finding
from smolmoe.evaluation.held_out import paired_difference
from smolmoe.hub.model_facts import ModelFacts
from smolmoe.reports.charts import Chart, Points, axes, beside, by_step, line, on, show, thinned
from smolmoe.reports.names import BEFORE, CHANCE, DENSE_PROBE, LINEAR_PROBE, PROBE_NAMES, ROUTER, Looks, colour, marker
from smolmoe.reports.overview import Boundary, Probe, Training
from smolmoe.reports.training_curves import History, smoothed_ce

_HEAT = [[0, "@heat0"], [0.5, "@heat1"], [1, "@heat2"]]


def boundary_chart(boundary: Boundary, name: str, looks: Looks) -> Chart:
    """Held-out loss over training tokens, the conversion marked."""
    traces = [line(label, points, looks(label)) for label, points in boundary.curves.items()]
    layout = axes("training tokens", "held-out loss (nats a token)", xaxis_exponentformat="SI")
    if boundary.at:
        layout |= _mark(boundary.at, "conversion")
    seen = [loss for points in boundary.curves.values() for tokens, loss in points if tokens >= boundary.at / 2]
    if seen:  # the first steps of training from nothing would flatten what this is about
        room = 0.08 * (max(seen) - min(seen) or 1)
        layout["yaxis"]["range"] = [min(seen) - room, max(seen) + room]
    head, rows = by_step("tokens", boundary.curves, lambda tokens: f"{tokens:,.0f}")
    return Chart(
        name,
        f"Held-out loss across the conversion: {boundary.label}",
        f"{boundary.tokens:,} tokens of {boundary.documents:,} documents, lower is better. An exact conversion leaves "
        "no step at the line; what follows is what the same further tokens bought each model.",
        traces,
        layout,
        head,
        rows,
        height=420,
    )


def _mark(at: float, words: str) -> dict[str, Any]:
    shape = {"type": "line", "x0": at, "x1": at, "y0": 0, "y1": 1, "yref": "paper"}
    note = {"x": at, "y": 1, "yref": "paper", "text": words, "showarrow": False, "xanchor": "left", "xshift": 5}
    return {
        "shapes": [shape | {"line": {"color": "@grey", "width": 1.5, "dash": "dot"}}],
        "annotations": [note | {"yanchor": "top", "font": {"color": "@grey"}}],
    }


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
    layout |= _mark(1, "limit")
    layout["annotations"][0] |= {"x": 0, "y": 0.02, "yanchor": "bottom"}  # a logarithmic axis places words by exponent
    return Chart(
        "checks",
        "How far each check is below its limit",
        "Left of the line passes. What is measured at 0 stands at the left edge.",
        traces,
        layout,
        ["model", "check", "measured", "limit", "passed"],
        rows,
        height=120 + 34 * len({row[1] for row in rows}),
    )


# -- trainings -------------------------------------------------------------------------------------------------------


def final_chart(done: Sequence[Training], name: str, looks: Looks) -> Chart | None:
    """The final held-out losses of runs that belong together, by domain, above the lowest of them."""
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
            "error_x": _spread([above(run, kind, done) for kind in kinds], looks(run.label)),
            "marker": _filled_where_enough(run, kinds, looks(run.label)),
            "hovertemplate": "%{text}, %{x:+.4f}<extra>%{fullData.name}</extra>",
        }
        for place, run in enumerate(done)
    ]
    layout = axes("held-out loss above the lowest one here (nats a token)", "", yaxis_autorange="reversed")
    layout["yaxis"] |= {"tickvals": list(range(len(kinds))), "ticktext": [escape(kind) for kind in kinds]}
    head, rows = final_rows(done)
    head = [*head, "all, above the lowest"]
    rows = [[*row, _said(above(run, "all", done), run)] for row, run in zip(rows, done, strict=True)]
    return Chart(
        name,
        f"Final held-out loss: {', '.join(run.label for run in done)}",
        "Lower is better, 0 is the lowest loss in that row; a bar is the 95% interval of the distance from it over "
        "documents: where it reaches 0, no difference is seen; hollow: too few documents for a finding (fewer than "
        f"{FEWEST_DOCUMENTS}). These runs have a common ancestor or are compared by "
        "their pipeline, and were measured on the same held-out text.",
        traces,
        layout,
        head,
        rows,
        height=150 + (30 + 7 * min(len(done), 12)) * len(kinds) + 20 * (len(done) // 4),
    )


def above(run: Training, kind: str, others: Sequence[Training]) -> Interval | None:
    """How far a run's loss is above the lowest of them, with its interval over documents; None of the lowest."""
    losses = {other.label: loss for other in others if (loss := _loss(other, kind)) is not None}
    best = min(others, key=lambda other: losses.get(other.label, math.inf))
    if run is best or run.documents is None or best.documents is None or run.label not in losses:
        return None
    parts = [found.documents.part(None if kind == "all" else kind) for found in (run, best) if found.documents]
    few = len(parts[0].tokens) < FEWEST_DOCUMENTS and kind != "all"  # its bar would say more than it knows
    return None if few or not parts[0].tokens else Interval(*paired_difference(*parts))


def _spread(gaps: Sequence[Interval | None], place: int) -> dict[str, Any]:
    """plotly's bars."""
    high, low = ([0.0 if gap is None else abs(end(gap)) for gap in gaps] for end in (_high, _low))
    look = {"color": colour(place), "thickness": 1.3, "width": 4}
    return {"type": "data", "symmetric": False, "array": high, "arrayminus": low, **look}


def _filled_where_enough(run: Training, kinds: Sequence[str], place: int) -> dict[str, Any]:
    """The run's marker, hollow where there are too few documents for a finding."""
    found = marker(place)
    few = [run.documents is not None and _count(run, kind) < FEWEST_DOCUMENTS for kind in kinds]
    return {**found, "symbol": [f"{found['symbol']}{'-open' if hollow else ''}" for hollow in few]}


def _count(run: Training, kind: str) -> int:
    assert run.documents is not None
    return len(run.documents.part(None if kind == "all" else kind).tokens)


def _high(gap: Interval) -> float:
    return gap.high - gap.value


def _low(gap: Interval) -> float:
    return gap.value - gap.low


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
    """Each run's final losses and what it cost."""
    kinds = _kinds(runs)
    head = ["run", *kinds, "parameters", "active", "training tokens", "FLOPs", "held-out tokens"]
    return head, [
        [run.label, *(_loss(run, kind) for kind in kinds), *_cost(run), run.summary["held_out"].get("tokens")]
        for run in runs
    ]


def _cost(run: Training) -> list[Any]:
    sizes = run.summary.get("parameters") or {}
    return [sizes.get("total"), sizes.get("active"), run.summary.get("tokens"), run.summary.get("flops")]


def training_chart(trainings: Sequence[Training], name: str, looks: Looks) -> Chart | None:
    """Loss on training batches and held out, over steps."""
    panels: list[tuple[str, str, Callable[[History], Points]]] = [
        ("on training batches, smoothed", "cross-entropy (nats)", smoothed_ce),
        ("held out", "loss (nats)", lambda history: history.points("held_out", "loss")),
    ]
    return _panels(
        name,
        "Loss over training",
        "Lower is better; the right panel is on text that the model was not trained on.",
        panels,
        [(training.label, training.history) for training in trainings],
        looks,
    )


def balance_chart(trainings: Sequence[Training], name: str, looks: Looks) -> Chart | None:
    """Load balance, its worst case and active experts, over steps."""
    panels: list[tuple[str, str, Callable[[History], Points]]] = [
        ("load balance", "entropy of the load (1 is even)", lambda history: history.routing("balance")),
        ("MaxVio", "highest / mean load − 1", lambda history: history.routing("max_violation")),
        ("active experts", "experts reached", lambda history: history.routing("active_experts")),
    ]
    moes = [(run.label, run.history) for run in trainings if run.history.routing("balance")]
    found = _panels(
        name,
        "Load balance and active experts over training",
        "Even load is 1 on the left and 0 in the middle; a fall on the right is experts dying.",
        panels,
        moes,
        looks,
    )
    if found is not None:
        found.layout["yaxis3"]["rangemode"] = "tozero"
    return found


def _panels(
    name: str,
    title: str,
    caption: str,
    panels: Sequence[tuple[str, str, Callable[[History], Points]]],
    histories: Sequence[tuple[str, History]],
    looks: Looks,
) -> Chart | None:
    traces: list[dict[str, Any]] = []
    lines: dict[str, Points] = {}
    for panel, (words, _, points) in enumerate(panels):
        for label, history in histories:
            if found := points(history):
                shown = label not in {trace["name"] for trace in traces}
                more = {"legendgroup": label, "showlegend": shown, **on(panel)}
                traces.append(line(label, found, looks(label), **more))
                lines[f"{label}, {words}"] = thinned(found)
    if not traces:
        return None
    layout = beside(*((words, "optimiser steps", unit) for words, unit, _ in panels))
    head, rows = by_step("step", lines, int)
    return Chart(name, title, caption, traces, layout, head, rows, height=400)


# -- probes ----------------------------------------------------------------------------------------------------------


def routing_chart(probe: Probe, name: str) -> Chart:
    """Domain x expert, before and after, one layer at a time."""
    states = [("before", probe.before), ("after", probe.after)] if probe.before else [("", probe.after)]
    top = max(float(np.nanmax(part.matrix)) for _, part in states if part)
    traces: list[dict[str, Any]] = []
    rows = []
    for panel, (state, part) in enumerate(states):
        assert part is not None
        traces.append(
            {
                "type": "heatmap",
                "x": part.labels,
                "y": part.domains,
                "z": np.round(100 * part.matrix, 2).tolist(),
                "zmin": 0,
                "zmax": 100 * top,
                "colorscale": _HEAT,
                "showscale": panel == len(states) - 1,
                "colorbar": {"title": {"text": "share (%)"}, "thickness": 12, "outlinewidth": 0},
                "xgap": 2,
                "ygap": 2,
                "texttemplate": "%{z:.0f}" if part.experts <= 16 else "",
                "hovertemplate": "%{y}: %{z:.1f}% to expert %{x}<extra></extra>",
                **on(panel),
            }
        )
        for place, layer in enumerate(part.layers):
            for row, domain in enumerate(part.domains):
                shares = [f"{100 * share:.1f}" for share in part.matrix[place, row]]
                rows.append([f"layer {layer}, {domain}{', ' if state else ''}{state}", *shares])
    layout = beside(*((state or "this model", "expert", "") for state, _ in states))
    for place in range(len(states)):
        number = "" if place == 0 else str(place + 1)
        layout[f"xaxis{number}"] |= {"type": "category", "showgrid": False}
        layout[f"yaxis{number}"] |= {"type": "category", "showgrid": False, "autorange": "reversed", "automargin": True}
    return Chart(
        name,
        f"Who takes what: {probe.label}",
        "Share of each domain's choices, in percent; a row adds up to 100. A strong cell is an expert that takes much "
        "of the domain, an even row a domain that no expert has made its own.",
        traces,
        layout,
        ["layer, domain", *(f"expert {label}" for label in probe.after.labels)],
        rows,
        layers=[f"layer {layer}" for layer in probe.after.layers],
        start=probe.after.clearest,
        height=190 + 34 * len(probe.after.domains),
    )


def layers_chart(probe: Probe, name: str) -> Chart:
    """Separation and contrast beside chance, accuracy beside its ceiling, layer by layer."""
    after, before = probe.after, probe.before
    panels = [
        ("domain separation", "bits", "separation", "separation"),
        ("routing contrast", "times", "contrast", "contrast"),
    ]
    lines: dict[str, tuple[int, np.ndarray, int | None]] = {}
    for panel, (words, _, key, chance) in enumerate(panels):
        lines[words] = (panel, after.per_layer(key), ROUTER)
        if before is not None:
            lines[f"{words}, before"] = (panel, before.per_layer(key), BEFORE)
        lines[f"{words}, 95% of {CHANCE}"] = (panel, after.baseline(chance, "p95"), None)
    tables = {
        "accuracy": (ROUTER, after.accuracy("macro")),
        "accuracy, before": (BEFORE, None if before is None else before.accuracy("macro")),
        "linear probe": (LINEAR_PROBE, after.accuracy("linear_probe_macro")),
        "dense linear probe": (DENSE_PROBE, after.accuracy("dense_linear_probe_macro")),
    }
    lines |= {words: (2, values, place) for words, (place, values) in tables.items() if values is not None}
    traces: list[dict[str, Any]] = []
    for panel, values, place in lines.values():
        points = [(layer, float(v)) for layer, v in zip(after.layers, values, strict=True) if not np.isnan(v)]
        label = f"{CHANCE}, 95th percentile" if place is None else PROBE_NAMES[place]
        shown = label not in {trace["name"] for trace in traces}
        trace = line(label, points, place or 0, legendgroup=label, showlegend=shown, **on(panel))
        if place is None:
            trace |= {"mode": "lines", "line": {"color": "@grey", "dash": "dot", "width": 1.5}}
        traces.append(trace)
    layout = beside(*((w, "layer", u) for w, u, _, _ in panels), ("domain accuracy", "layer", "share of tokens"))
    for axis in ("xaxis", "xaxis2", "xaxis3"):
        layout[axis] |= {"tickmode": "linear" if len(after.layers) <= 16 else "auto", "dtick": 1}
    layout["yaxis3"] |= {"tickformat": ".0%"}
    rows = [[layer, *(_number(values, at) for _, values, _ in lines.values())] for at, layer in enumerate(after.layers)]
    return Chart(
        name,
        f"Specialisation layer by layer: {probe.label}",
        "Separation and contrast mean something where the router's line is above chance (the domains shuffled). On the "
        "right: how often a token's first expert tells its domain, beside what a linear probe on the same input does.",
        traces,
        layout,
        ["layer", *lines],
        rows,
        height=400,
    )


def _number(values: np.ndarray, at: int) -> float | None:
    return None if np.isnan(values[at]) else float(values[at])


def by_domain_rows(boundary: Boundary) -> tuple[list[str], list[list[Any]]]:
    """Final held-out losses of the runs in each domain."""
    domains = list(next(iter(boundary.by_domain.values())))
    return ["model", *domains], [[label, *map(found.get, domains)] for label, found in boundary.by_domain.items()]
