"""The report's figure and table of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from smolmoe.core import units
from smolmoe.core.statistics import NO_DIFFERENCE
from smolmoe.reports.blocks import Chart, plotted
from smolmoe.reports.names import MARKERS
from smolmoe.reports.plot import axes, bars
from smolmoe.results.comparison import Comparison, Difference, Estimate, ModelResult, Pair


def comparison_chart(found: Comparison, name: str) -> Chart | None:
    """Differences of every two models with their intervals."""
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
        # A difference is of two models: it has neither's colour.
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


def _ends(found: Difference | Estimate) -> tuple[float, float]:
    """The widest of the intervals."""
    spans = [span for span in (found.documents, found.seeds) if span is not None]
    return min(span.low for span in spans), max(span.high for span in spans)


def comparison_rows(found: Comparison) -> tuple[list[str], list[list[Any]]]:
    """A row for each measure, a column for each model."""
    models = found.models
    rows: list[list[Any]] = [
        ["class", *(model.class_name for model in models)],
        ["experts, top-k", *(_experts(model) for model in models)],
        [f"loss (nats per {found.unit})", *(_estimate(model.loss) for model in models)],
        *([f"… {domain}", *(_estimate(m.by_domain[domain]) for m in models)] for domain in models[0].by_domain),
        ["perplexity", *(_estimate(model.perplexity) for model in models)],
        ["bits per byte", *(_estimate(model.bits_per_byte) for model in models)],
        ["parameters", *(units.parameters(model.parameters) for model in models)],
        ["active parameters per token", *(units.parameters(model.active) for model in models)],
        ["size on disk", *(units.size(model.disk) for model in models)],
        ["forward FLOPs per token", *(units.flops(model.flops) for model in models)],
        ["top-1 agreement with the base", *(m.agreement and f"{m.agreement.top1.value:.2%}" for m in models)],
        ["KL from the base (nats per token)", *(m.agreement and f"{m.agreement.kl.value:.3g}" for m in models)],
    ]
    if any(model.speed for model in models):
        rows += [
            ["time to first token", *(m.speed and units.duration(m.speed.latency) for m in models)],
            ["prefill (tokens/s)", *(m.speed and f"{m.speed.prefill:,.0f}" for m in models)],
            ["decode (tokens/s)", *(m.speed and f"{m.speed.decode:,.0f}" for m in models)],
            ["peak memory", *(m.speed and units.size(m.speed.memory) for m in models)],
        ]
    tasks = dict.fromkeys((task, metric) for model in models for task, of in model.tasks.items() for metric in of)
    rows += [[f"{task}, {metric}", *(_score(model, task, metric) for model in models)] for task, metric in tasks]
    rows.append(["seeds", *(len(model.checkpoints) for model in models)])
    return ["measure", *(model.name for model in models)], rows


def _experts(model: ModelResult) -> str:
    return f"{model.experts}, top-{model.top_k}" if model.experts else "dense"


def _estimate(found: Estimate) -> str:
    low, high = _ends(found)
    return f"{found.value:.4f} [{low:.4f}, {high:.4f}]"


def _score(model: ModelResult, task: str, metric: str) -> str | None:
    found = model.tasks.get(task, {}).get(metric)
    if found is None:
        return None
    return f"{found.value:.4f}" + ("" if found.stderr is None else f" ± {found.stderr:.4f}")


def rivals(found: Comparison) -> Sequence[Pair]:
    """Pairs of an MoE and a dense model, the base left out where another dense one was continued."""
    kinds = {model.name: model.kind for model in found.models}
    pairs = [pair for pair in found.pairs if {kinds[pair.first], kinds[pair.second]} == {"moe", "dense"}]
    return [pair for pair in pairs if found.base.name not in (pair.first, pair.second)] or pairs
