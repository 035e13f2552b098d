"""The report's figures and tables of comparisons and sweeps, from their JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from smolmoe.core import units
from smolmoe.core.interval import NO_DIFFERENCE
from smolmoe.reports.charts import Chart, axes, line
from smolmoe.reports.names import MARKERS, Looks, colour, marker

Values = Mapping[str, Any]


def comparison_chart(values: Values, name: str) -> Chart | None:
    """Differences of every two models with their intervals."""
    pairs = values.get("pairs") or ()
    if not pairs:
        return None
    unit = values.get("unit", "token")
    kinds = ["all", *(pairs[0].get("by_domain") or {})]
    spread = min(0.22, 0.7 / len(pairs))
    traces, rows = [], []
    for place, pair in enumerate(pairs):
        found = [pair["loss"], *(pair["by_domain"][kind] for kind in kinds[1:])]
        label = f"{pair['first']} − {pair['second']}"
        ends = [_ends(difference) for difference in found]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": label,
                "x": [difference["value"] for difference in found],
                "y": [row + spread * (place - (len(pairs) - 1) / 2) for row in range(len(kinds))],
                "text": kinds,
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [high - d["value"] for d, (_, high) in zip(found, ends, strict=True)],
                    "arrayminus": [d["value"] - low for d, (low, _) in zip(found, ends, strict=True)],
                    "color": "@ink",
                    "thickness": 1.6,
                    "width": 5,
                },
                # A difference is of two models: it has neither's colour.
                "marker": {"color": "@ink", "size": 10, "symbol": _symbols(found, MARKERS[place % len(MARKERS)])},
                "hovertemplate": "%{x:+.4f}<extra>%{text}, %{fullData.name}</extra>",
            }
        )
        for kind, difference, (low, high) in zip(kinds, found, ends, strict=True):
            better = pair.get("better") if kind == "all" else None
            verdict = (better or NO_DIFFERENCE) if kind == "all" else ""
            rows.append([label, kind, difference["value"], low, high, difference.get("p"), verdict])
    layout = axes(f"difference of losses (nats a {unit})", "", yaxis_autorange="reversed")
    layout["yaxis"] |= {"tickvals": list(range(len(kinds))), "ticktext": [escape(kind) for kind in kinds]}
    layout["shapes"] = [{"type": "line", "x0": 0, "x1": 0, "y0": 0, "y1": 1, "yref": "paper"}]
    layout["shapes"][0]["line"] = {"color": "@grey", "width": 1.5, "dash": "dot"}
    return Chart(
        name,
        "Who wins, and how surely",
        "Loss of the first less that of the second on the same documents: left of 0 the first is better. The bars are "
        "95% intervals, the wider of those over documents and over seeds. Filled is a finding by interval, test and "
        "number of documents; hollow: no difference seen.",
        traces,
        layout,
        ["pair", "text", "difference", "low", "high", "p", "better"],
        rows,
        height=150 + (26 * len(pairs) + 26) * len(kinds),
    )


def _symbols(found: Sequence[Values], symbol: str) -> list[str]:
    """Hollow where no difference is seen."""
    return [symbol if difference.get("is_decided") else f"{symbol}-open" for difference in found]


def _ends(difference: Values) -> tuple[float, float]:
    """The widest of the intervals."""
    spans = [span for span in (difference.get("documents"), difference.get("seeds")) if span]
    return min(span["low"] for span in spans), max(span["high"] for span in spans)


def comparison_rows(values: Values) -> tuple[list[str], list[list[Any]]]:
    """A row for each measure, a column for each model."""
    models = values.get("models") or ()
    domains = list((models[0].get("by_domain") or {}) if models else ())
    unit = values.get("unit", "token")
    rows: list[list[Any]] = [
        ["class", *(model["class_name"] for model in models)],
        ["experts, top-k", *(_experts(model) for model in models)],
        [f"loss, nats a {unit}", *(_estimate(model["loss"]) for model in models)],
        *([f"… {domain}", *(_estimate(model["by_domain"][domain]) for model in models)] for domain in domains),
        ["perplexity", *(_estimate(model["perplexity"]) for model in models)],
        ["bits a byte", *(_estimate(model["bits_per_byte"]) for model in models)],
        ["parameters", *(units.parameters(model["parameters"]) for model in models)],
        ["active for a token", *(units.parameters(model["active"]) for model in models)],
        ["size on disk", *(units.size(model["disk"]) for model in models)],
        ["FLOPs a token, forward", *(units.flops(model["flops"]) for model in models)],
        ["same favourite token as the base", *(_agreement(model, "top1") for model in models)],
        ["KL from the base, nats", *(_agreement(model, "kl") for model in models)],
    ]
    if any(model.get("speed") for model in models):
        words = {"latency": "first token after", "prefill": "reading, tokens/s", "decode": "writing, tokens/s"}
        words |= {"memory": "peak memory"}
        rows += [[said, *(_speed(model.get("speed") or {}, key) for model in models)] for key, said in words.items()]
    tasks = {
        (task, metric): None for model in models for task, of in (model.get("tasks") or {}).items() for metric in of
    }
    rows += [[f"{task}, {metric}", *(_score(model, task, metric) for model in models)] for task, metric in tasks]
    rows.append(["seeds", *(len(model.get("checkpoints") or ()) for model in models)])
    return ["", *(str(model["name"]) for model in models)], rows


def _speed(found: Values, key: str) -> str | None:
    if found.get(key) is None:
        return None
    forms = {"latency": units.duration, "memory": units.size}
    return forms.get(key, lambda value: f"{value:,.0f}")(found[key])


def _experts(model: Values) -> str:
    return f"{model['experts']}, top-{model['top_k']}" if model.get("experts") else "dense"


def _estimate(found: Values) -> str:
    low, high = _ends(found)
    return f"{found['value']:.4f} [{low:.4f}, {high:.4f}]"


def _score(model: Values, task: str, metric: str) -> str | None:
    found = ((model.get("tasks") or {}).get(task) or {}).get(metric)
    if not found:
        return None
    return f"{found['value']:.4f}" + ("" if found.get("stderr") is None else f" ± {found['stderr']:.4f}")


def _agreement(model: Values, key: str) -> str | None:
    found = model.get("agreement")
    if not found:
        return None
    value = found[key]["value"]
    return f"{value:.2%}" if key == "top1" else f"{value:.3g}"


def sweep_chart(values: Values, name: str, looks: Looks) -> Chart | None:
    """Loss over training tokens: points, law, and the band that widens beyond them."""
    traces: list[dict[str, Any]] = []
    rows = []
    for curve in values.get("curves") or ():
        place = looks(_curve_name(values, curve))
        band = curve.get("band") or ()
        if band:
            x = [point["tokens"] for point in band]
            y = [point["loss"]["high"] for point in band] + [point["loss"]["low"] for point in reversed(band)]
            shade = {"type": "scatter", "mode": "lines", "x": [*x, *reversed(x)], "y": y, "fill": "toself"}
            traces.append(
                shade
                | {"fillcolor": f"{colour(place)}/0.15", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
                | {"name": f"{curve['name']}, band"}
            )
            law = [(point["tokens"], point["loss"]["value"]) for point in band]
            traces.append(line(f"{curve['name']}, law", law, place, mode="lines"))
        points = curve.get("points") or ()
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": curve["name"],
                "x": [point["tokens"] for point in points],
                "y": [point["loss"] for point in points],
                "marker": marker(place, 9),
                "hovertemplate": "%{y:.4f} at %{x:.3s} tokens<extra></extra>",
            }
        )
        rows += [[curve["name"], p["tokens"], p["steps"], p.get("seed"), p["loss"], p.get("flops")] for p in points]
    if not traces:
        return None
    return Chart(
        name,
        f"Loss by training tokens: {values.get('model', '')}",
        "Each point is a training of its own budget; the line is the fitted law and the shade its 95% band, which "
        "widens beyond the largest budget. " + str((values.get("uncertainty") or {}).get("text", "")),
        traces,
        axes(
            "training tokens",
            "held-out loss (nats a token)",
            xaxis_type="log",
            xaxis_dtick="D2",
            xaxis_exponentformat="SI",
        ),
        ["curve", "tokens", "steps", "seed", "loss", "FLOPs"],
        rows,
        height=430,
    )


def _curve_name(values: Values, curve: Values) -> str:
    """A curve is no model: its look is its own."""
    return f"sweep of {values.get('recipe', '')}: {curve['name']}"


def sweep_rows(values: Values) -> tuple[list[str], list[list[Any]]]:
    """What each tenfold of data buys."""
    rows: list[list[Any]] = []
    for curve in values.get("curves") or ():
        for gain in (*(curve.get("neighbours") or ()), *(curve.get("tenfold") or ())):
            drop = gain["drop"]
            interval = f"{drop['value']:+.4f} [{drop['low']:+.4f}, {drop['high']:+.4f}]"
            rows.append([curve["name"], f"{gain['begin']:,}", f"{gain['end']:,}", interval, gain["reach"]])
    return ["curve", "from tokens", "to tokens", "loss falls by, nats", "how known"], rows


def sweep_needs(values: Values) -> tuple[list[str], list[list[Any]]]:
    """How much more data a lower perplexity needs."""
    head = ["curve", "lower perplexity", "nats a token", "times the data, no floor", "by the law with its floor"]
    rows: list[list[Any]] = []
    for curve in values.get("curves") or ():
        for need in (curve.get("power") or {}).get("needs") or ():
            folds = [
                None if found is None else units.times(**_fold(found)) for found in (need["fold"], need["law_fold"])
            ]
            tokens = None if need["tokens"] is None else units.tokens(need["tokens"])
            rows.append([curve["name"], f"{need['lower']:.0%}", f"{need['nats']:.3f}", *folds, tokens, need["reach"]])
    return [*head, "tokens", "how known"], rows


def _fold(found: Values) -> dict[str, float | None]:
    return {"fold": found["value"], "low": found["low"], "high": found["high"]}


def needs_chart(values: Values, name: str, looks: Looks) -> Chart | None:
    """The factors of data on a logarithmic axis, with their intervals."""
    traces = []
    for curve in values.get("curves") or ():
        needs = [n for n in (curve.get("power") or {}).get("needs") or () if n["fold"]["value"] is not None]
        place = looks(_curve_name(values, curve))
        for key, words in (("fold", "no floor"), ("law_fold", "law with its floor")):
            found = [(need, need[key]) for need in needs if need[key] and need[key]["value"] is not None]
            if not found:
                continue
            highest = 1e3 * max(fold["value"] for _, fold in found)
            look = marker(place) if key == "fold" else {**marker(place), "symbol": "diamond-open"}
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": f"{curve['name']}, {words}",
                    "x": [fold["value"] for _, fold in found],
                    "y": [f"{need['lower']:.0%}" for need, _ in found],
                    "error_x": {
                        "type": "data",
                        "symmetric": False,
                        "array": [(fold["high"] or highest) - fold["value"] for _, fold in found],
                        "arrayminus": [fold["value"] - (fold["low"] or fold["value"]) for _, fold in found],
                        "color": colour(place),
                        "thickness": 1.4,
                        "width": 5,
                    },
                    "marker": look,
                    "hovertemplate": "%{x:.3s} times the data for %{y}<extra>%{fullData.name}</extra>",
                }
            )
    if not traces:
        return None
    head, rows = sweep_needs(values)
    return Chart(
        name,
        f"How much more data a lower perplexity needs: {values.get('model', '')}",
        "Times the data of the largest budget, with 95% intervals. Without a floor a power of perplexity goes on for "
        "ever: that is the least it may take. Beyond ten times the largest budget both are a guess.",
        traces,
        axes(
            "times the data",
            "lower perplexity",
            xaxis_type="log",
            xaxis_dtick=1,
            yaxis_type="category",
            yaxis_range=[-0.5, 2.5],
        ),
        head,
        rows,
        height=300,
    )


def sweep_laws(values: Values) -> Sequence[str]:
    """The fitted laws in words, or why there is none."""
    said = []
    for curve in values.get("curves") or ():
        power, law = curve.get("power"), curve.get("law")
        if power:
            share, nats = power["tenfold_share"], power["tenfold"]
            said.append(
                f"{curve['name']}: each 10x of data gives {share['value']:.1%} lower perplexity "
                f"[{share['low']:.1%}, {share['high']:.1%}], {nats['value']:.4f} [{nats['low']:.4f}, "
                f"{nats['high']:.4f}] nats a token."
            )
        if law is None:
            said.append(f"{curve['name']}: no law. {curve.get('reason') or ''}".strip())
            continue
        parts = {key: law[key] for key in ("offset", "scale", "exponent")}
        shown = ", ".join(f"{key} {v['value']:.3g} [{v['low']:.3g}, {v['high']:.3g}]" for key, v in parts.items())
        sure = "" if law.get("identified", True) else " The points do not pin it down."
        said.append(f"{curve['name']}: loss = offset + scale × tokens^−exponent, {shown}.{sure}")
    return [*said, *(str(warning) for warning in values.get("warnings") or ())]
