"""The report's figures of conversions and trainings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from smolmoe.core.statistics import FEWEST_DOCUMENTS, Interval, evidence, no_finding
from smolmoe.evaluation.held_out import paired_difference
from smolmoe.hub.model_facts import ModelFacts
from smolmoe.reports.blocks import Chart
from smolmoe.reports.figures import Dot, Figure, Level, Lines, row_dots
from smolmoe.reports.names import Looks
from smolmoe.reports.overview import Training
from smolmoe.reports.plot import plot


def claim_chart(models: Sequence[tuple[str, ModelFacts]], looks: Looks) -> Chart | None:
    """Each check's measurement as a share of its limit."""
    checks = [
        (label, check)
        for label, model in models
        for check in (model.provenance.get("verification") or {}).get("checks") or ()
        if float(check["limit"]) > 0 and math.isfinite(float(check["measured"]))
    ]
    shares = [
        (label, c["name"], max(c["measured"] / c["limit"], 1e-6)) for label, c in checks if c["name"] != "control"
    ]
    if not shares:
        return None
    names = list(dict.fromkeys(name for _, name, _ in shares))
    series = [
        one
        for label in dict.fromkeys(label for label, _, _ in shares)
        for one in row_dots(
            label, [(x, names.index(name), (x, x), False) for of, name, x in shares if of == label], looks(label)
        )
    ]
    panel = Lines(
        "", "measured / limit", "", series, marks=[Level("limit", 1, upright=True)], rows=names, scale="ratio"
    )
    caption = "Points left of the line pass; a measurement of 0 is at the left edge."
    return replace(
        plot(Figure("checks", "How far each check is below its limit", caption, [panel])),
        head=["model", "check", "measured", "limit", "passed"],
        rows=[[label, c["name"], float(c["measured"]), float(c["limit"]), bool(c["passed"])] for label, c in checks],
    )


# -- trainings -------------------------------------------------------------------------------------------------------


def final_chart(done: Sequence[Training], name: str, looks: Looks) -> Chart | None:
    """Final held-out losses of comparable runs, by domain, above the lowest one."""
    if len(done) < 2:
        return None
    kinds = _kinds(done)
    panel = Lines(
        "",
        "held-out loss above the lowest one here (nats per token)",
        "",
        [
            series
            for place, run in enumerate(done)
            for series in row_dots(run.label, _dots(run, done, kinds), looks(run.label), place, len(done))
        ],
        rows=kinds,
    )
    caption = (
        "Lower is better, 0 is the lowest loss in that row; a bar is the 95% interval of the distance from it over "
        "documents: if it includes 0, no difference is seen. Hollow: too few documents for a finding (fewer than "
        f"{FEWEST_DOCUMENTS}). These runs have a common ancestor or are compared by their pipeline, and were measured "
        "on the same held-out text."
    )
    head, rows = final_rows(done)
    return replace(
        plot(Figure(name, f"Final held-out loss: {', '.join(run.label for run in done)}", caption, [panel])),
        head=[*head, "all, above the lowest"],
        rows=[[*row, _said(above(run, "all", done), run)] for row, run in zip(rows, done, strict=True)],
    )


def _dots(run: Training, done: Sequence[Training], kinds: Sequence[str]) -> list[Dot]:
    """The run's dot of each kind of text, hollow with too few documents for a finding."""
    found: list[Dot] = []
    for row, kind in enumerate(kinds):
        loss = _loss(run, kind)
        if loss is None:
            continue
        value = loss - min(other for one in done if (other := _loss(one, kind)) is not None)
        gap = above(run, kind, done)
        few = run.documents is not None and _count(run, kind) < FEWEST_DOCUMENTS
        found.append((value, row, (value, value) if gap is None else (gap.low, gap.high), few))
    return found


def above(run: Training, kind: str, others: Sequence[Training]) -> Interval | None:
    """A run's loss minus the lowest one, with its interval over documents; None for the lowest."""
    losses = {other.label: loss for other in others if (loss := _loss(other, kind)) is not None}
    best = min(others, key=lambda other: losses.get(other.label, math.inf))
    if run is best or run.documents is None or best.documents is None or run.label not in losses:
        return None
    parts = [found.documents.part(None if kind == "all" else kind) for found in (run, best) if found.documents]
    few = len(parts[0].tokens) < FEWEST_DOCUMENTS and kind != "all"  # the interval would be misleading
    return None if few or not parts[0].tokens else Interval(*paired_difference(*parts))


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
