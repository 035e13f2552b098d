"""The report's figure and table of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from smolmoe.core.statistics import NO_DIFFERENCE
from smolmoe.evaluation.compare.table import tables
from smolmoe.reports.blocks import Chart, plotted
from smolmoe.reports.names import MARKERS
from smolmoe.reports.plot import axes, bars
from smolmoe.results.comparison import Comparison, Difference, Pair


def comparison_chart(found: Comparison, name: str) -> Chart | None:
    """Loss differences of all pairs of models, with intervals."""
    if not found.pairs:
        return None
    kinds = ["all", *found.pairs[0].by_domain]
    traces = [_trace(pair, place, len(found.pairs)) for place, pair in enumerate(found.pairs)]
    layout = axes(f"difference of losses (nats per {found.unit})", "", yaxis_autorange="reversed")
    layout["yaxis"] |= {"tickvals": list(range(len(kinds))), "ticktext": [plotted(kind) for kind in kinds]}
    line = {"color": "@grey", "width": 1.5, "dash": "dot"}
    layout["shapes"] = [{"type": "line", "x0": 0, "x1": 0, "y0": 0, "y1": 1, "yref": "paper", "line": line}]
    return Chart(
        name,
        "Loss differences between models",
        "Loss of the first model minus loss of the second on the same documents: left of 0, the first is better. Bars "
        "are 95% intervals, the wider of those over documents and over seeds. A filled marker is a finding by "
        "interval, test and number of documents; a hollow one: no difference seen.",
        traces,
        layout,
        ["pair", "text", f"difference (nats per {found.unit})", "95% low", "95% high", "p", "better"],
        [row for pair in found.pairs for row in _rows(pair)],
        height=150 + (26 * len(found.pairs) + 26) * len(kinds),
    )


def _trace(pair: Pair, place: int, of: int) -> dict[str, Any]:
    found = [pair.loss, *pair.by_domain.values()]
    symbol = MARKERS[place % len(MARKERS)]
    shift = min(0.22, 0.7 / of) * (place - (of - 1) / 2)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": _label(pair),
        "x": [difference.value for difference in found],
        "y": [row + shift for row in range(len(found))],
        "text": ["all", *pair.by_domain],
        "error_x": bars([(difference.value, *_ends(difference)) for difference in found], "@ink"),
        # A difference belongs to two models, so it has the colour of neither.
        "marker": {
            "color": "@ink",
            "size": 10,
            "symbol": [symbol if difference.is_decided else f"{symbol}-open" for difference in found],
        },
        "hovertemplate": "%{x:+.4f}<extra>%{text}, %{fullData.name}</extra>",
    }


def _rows(pair: Pair) -> list[list[Any]]:
    def row(kind: str, difference: Difference, verdict: str) -> list[Any]:
        return [_label(pair), kind, difference.value, *_ends(difference), difference.p, verdict]

    domains = [row(domain, difference, "") for domain, difference in pair.by_domain.items()]
    return [row("all", pair.loss, pair.better or NO_DIFFERENCE), *domains]


def _label(pair: Pair) -> str:
    return f"{pair.first} − {pair.second}"


def _ends(found: Difference) -> tuple[float, float]:
    """The wider of the intervals."""
    spans = [span for span in (found.documents, found.seeds) if span is not None]
    return min(span.low for span in spans), max(span.high for span in spans)


def comparison_rows(found: Comparison) -> tuple[list[str], list[list[Any]]]:
    """A row for each measure, a column for each model."""
    table = tables(found)[0]
    rows = [[f"{heading}: {row.label}", *row.cells] for heading, rows in table.groups for row in rows]
    return ["measure", *table.columns], rows


def rivals(found: Comparison) -> Sequence[Pair]:
    """Pairs of an MoE and a dense model, without the base if there is another dense model."""
    kinds = {model.name: model.kind for model in found.models}
    pairs = [pair for pair in found.pairs if {kinds[pair.first], kinds[pair.second]} == {"moe", "dense"}]
    return [pair for pair in pairs if found.base.name not in (pair.first, pair.second)] or pairs
