"""The report's figure and table of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from smolmoe.core.statistics import NO_DIFFERENCE
from smolmoe.evaluation.compare.table import tables
from smolmoe.reports.blocks import Chart
from smolmoe.reports.figures import Figure, Level, Lines, Series, row_dots
from smolmoe.reports.names import Looks
from smolmoe.reports.plot import plot
from smolmoe.results.comparison import Comparison, Difference, Pair


def comparison_chart(found: Comparison, name: str, looks: Looks) -> Chart | None:
    """Loss differences of all pairs of models, with intervals; a pair is not a model and has a separate colour."""
    if not found.pairs:
        return None
    panel = Lines(
        "",
        f"difference of losses (nats per {found.unit})",
        "",
        [
            series
            for place, pair in enumerate(found.pairs)
            for series in _dots(pair, looks(_label(pair)), place, len(found.pairs))
        ],
        marks=[Level("", 0, upright=True)],
        rows=["all", *found.pairs[0].by_domain],
    )
    caption = (
        "Loss of the first model minus loss of the second on the same documents: left of 0, the first is better. Bars "
        "are 95% intervals, the wider of those over documents and over seeds. A filled marker is a finding by "
        "interval, test and number of documents; a hollow one: no difference seen."
    )
    return replace(
        plot(Figure(name, "Loss differences between models", caption, [panel])),
        head=["pair", "text", f"difference (nats per {found.unit})", "95% low", "95% high", "p", "better"],
        rows=[row for pair in found.pairs for row in _rows(pair)],
    )


def _dots(pair: Pair, look: int, place: int, of: int) -> list[Series]:
    found = enumerate([pair.loss, *pair.by_domain.values()])
    return row_dots(_label(pair), [(d.value, row, _ends(d), not d.is_decided) for row, d in found], look, place, of)


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
