"""Figures of what the experts do: who takes which domain, how far from chance, how often right, at what loss.

Each function makes `Drawing`s from a probe's file; call them inside `drawing.look()`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from smolmoe.core.interval import Interval, side
from smolmoe.reports.drawing import (
    BAND,
    GREY,
    PALE,
    WIDTH,
    Drawing,
    Panels,
    colour_bar,
    finite_range,
    frame_cells,
    heat_map,
    label_columns,
    label_rows,
    new_figure,
    panels_in_a_row,
    percent,
)
from smolmoe.reports.names import (
    BEFORE,
    CHANCE,
    DENSE_PROBE,
    DOCUMENTS,
    LINEAR_PROBE,
    OTHER,
    PROBE_NAMES,
    ROUTER,
    style,
)
from smolmoe.reports.specialisation_data import Probed, array

SHARE = "share of choices (%)"


def specialisation_figures(after: Probed, before: Probed | None) -> list[Drawing]:
    """All figures that a probe has the numbers for, in the order of the page; `before` is the same model earlier."""
    found = [
        routing(after, before),
        layer_maps(after),
        separation(after, before),
        accuracy(after, before),
        accuracy_by_domain(after),
        token_types(after),
    ]
    return [drawing for drawing in found if drawing is not None]


def routing(after: Probed, before: Probed | None) -> Drawing:
    """Domain x expert at the clearest layer and on average, before above after."""
    states = [("before", before), ("after", after)] if before is not None else [("", after)]
    chosen = after.clearest
    tables = [part for _, probed in states if probed for part in (probed.matrix[chosen], probed.matrix.mean(0))]
    titles = [
        f"{kind}, {state}" if state else kind
        for state, _ in states
        for kind in (f"layer {after.layers[chosen]}, the clearest", f"mean over {len(after.layers)} layers")
    ]
    values = np.stack(tables)
    panels = Panels(
        values=values,
        titles=titles,
        rows=after.domains,
        columns=after.labels,
        row_axis="domain",
        column_axis="expert",
        bar=SHARE,
        low=0,
        high=_top(values),
        write=percent,
        per_row=2 if after.experts <= 24 else 1,
        cell=0.3,
    )
    caption = (
        "Each row is one domain and adds up to 100%: a dark cell is an expert that takes much of the domain, an even "
        "row a domain that no expert has made its own."
    )
    title = "Routing of each domain" + (", before and after" if before is not None else "")
    return Drawing("routing", title, caption, panels.draw())


def layer_maps(after: Probed) -> Drawing:
    """Domain x expert of every layer."""
    panels = Panels(
        values=after.matrix,
        titles=after.layer_titles(),
        rows=after.domains,
        columns=after.labels,
        row_axis="domain",
        column_axis="expert",
        bar=SHARE,
        low=0,
        high=_top(after.matrix),
        write=percent,
        per_row=panels_in_a_row(len(after.layers), 3 if after.experts <= 10 else 2 if after.experts <= 24 else 1),
    )
    caption = "As above, layer by layer on one scale: the same column dark in every layer is an expert with one job."
    return Drawing("layers", "Routing of each domain, layer by layer", caption, panels.draw())


def token_types(after: Probed) -> Drawing | None:
    """Token type x expert at the clearest layer and on average: the other thing that experts may specialise in."""
    types = after.values.get("token_types")
    if not types or not any(types["tokens"]):
        return None
    seen = [place for place, tokens in enumerate(types["tokens"]) if tokens]
    matrix = array(types["matrix"])[:, seen]
    chosen = after.clearest
    values = np.stack([matrix[chosen], matrix.mean(0)])
    panels = Panels(
        values=values,
        titles=[f"layer {after.layers[chosen]}", f"mean over {len(after.layers)} layers"],
        rows=[types["names"][place] for place in seen],
        columns=after.labels,
        row_axis="type of token",
        column_axis="expert",
        bar=SHARE,
        low=0,
        high=_top(values),
        write=percent,
        per_row=2 if after.experts <= 24 else 1,
    )
    caption = (
        "Rows that differ here mean that experts also divide the text by kind of token; compare with the domains above "
        "before calling an expert a specialist of its domain."
    )
    return Drawing("token-types", "Routing of each type of token", caption, panels.draw())


def separation(after: Probed, before: Probed | None) -> Drawing:
    """Separation, mutual information and contrast by layer, over what shuffled labels give."""
    kinds = (
        ("separation", "domain separation (bits)", "Jensen-Shannon divergence"),
        ("mutual_information", "mutual information (bits)", "Domain and first choice"),
        ("contrast", "contrast (times)", "Routing contrast"),
    )
    figure = new_figure(3.3)
    for axes, (key, unit, title) in zip(figure.subplots(1, 3), kinds, strict=True):
        places = _layer_axis(axes, after.layers)
        _baseline(axes, places, after, key)
        axes.plot(places, after.per_layer(key), label=PROBE_NAMES[ROUTER], **style(ROUTER))
        if before is not None:
            axes.plot(places, before.per_layer(key), label=PROBE_NAMES[BEFORE], **style(BEFORE))
        extra = {
            "separation": ("within one type of token", after.values.get("within_type_separation")),
            "mutual_information": ("where the token's type is known", after.per_layer("domain_within_type")),
        }.get(key)
        if extra is not None and extra[1] is not None and not np.isnan(array(extra[1])).all():
            axes.plot(places, array(extra[1]), label=extra[0], **style(OTHER))
        axes.set_ylim(bottom=1 if key == "contrast" else 0)
        axes.set_ylabel(unit)
        axes.set_title(title)
        _legend_above(axes)
    caption = (
        "A layer tells domains apart where its line runs above the grey band, which is what shuffled labels give "
        "(mean to 95th percentile)."
    )
    return Drawing("separation", "How far routing depends on the domain", caption, figure)


def _baseline(axes: Axes, places: np.ndarray, probed: Probed, key: str) -> None:
    mean, top = probed.baseline(key, "mean"), probed.baseline(key, "p95")
    if not np.isnan(top).all():
        axes.fill_between(places, mean, top, color=BAND, label=f"{CHANCE} (shuffled labels)", zorder=1)
        axes.plot(places, top, color=GREY, linewidth=0.9, linestyle=(0, (1, 1.5)), zorder=1)


def accuracy(after: Probed, before: Probed | None) -> Drawing | None:
    """Held-out routing accuracy by layer under its ceiling."""
    macro = after.accuracy("macro")
    if macro is None:
        return None
    figure = new_figure(3.5)
    axes = figure.subplots()
    places = _layer_axis(axes, after.layers)
    lines: dict[int, Any] = {
        ROUTER: macro,
        BEFORE: None if before is None else before.accuracy("macro"),
        LINEAR_PROBE: after.accuracy("linear_probe_macro"),
        DENSE_PROBE: after.accuracy("dense_linear_probe_macro"),
        DOCUMENTS: _mean_over_domains(after.accuracy("document_majority")),
    }
    for place, values in lines.items():
        if values is not None:
            axes.plot(places, 100 * values, label=PROBE_NAMES[place], **style(place))
    chance = 100 / len(after.domains)
    axes.axhline(chance, color=PALE, linewidth=1, linestyle=(0, (1, 1.5)), label=f"{CHANCE} ({chance:.0f}%)")
    _mark_last_third(axes, after)
    axes.set_ylim(0, 103)
    axes.set_ylabel("domain accuracy (%), mean over domains")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    caption = (
        "How often a token's first expert is one of its domain's, on documents that nothing was fitted to; a router "
        "can hardly do better than the linear probe, and in the last third of the layers (shaded) it should reach it."
    )
    return Drawing("accuracy", "Routing accuracy, held out", caption, figure)


def accuracy_by_domain(after: Probed) -> Drawing | None:
    """Accuracy of each domain by layer: per token, its ceiling, per document."""
    kinds = (
        ("per_token", PROBE_NAMES[ROUTER]),
        ("linear_probe", PROBE_NAMES[LINEAR_PROBE]),
        ("document_majority", PROBE_NAMES[DOCUMENTS]),
    )
    tables = [(title, table) for key, title in kinds if (table := after.accuracy(key)) is not None]
    if not tables:
        return None
    columns = len(tables) if len(after.layers) <= 12 else 1
    rows = math.ceil(len(tables) / columns)
    figure = new_figure(rows * (len(after.domains) * 0.28 + 0.9))
    grid = figure.subplots(rows, columns, squeeze=False)
    for index, (axes, (title, table)) in enumerate(zip(grid.flat, tables, strict=True)):
        image = heat_map(axes, table.T, low=0, high=1, write=percent)
        axes.set_title(title)
        axes.set_xlabel("layer")
        label_columns(axes, [str(layer) for layer in after.layers])
        if index % columns == 0:
            label_rows(axes, after.domains)
            axes.set_ylabel("domain")
    colour_bar(figure, image, grid, "accuracy (%)", in_percent=True)
    caption = "Each cell is the share of the domain's tokens (right: documents) whose first expert is one of its own."
    return Drawing("accuracy-domains", "Routing accuracy of each domain", caption, figure)


def losses(after: Probed) -> Drawing | None:
    """What forcing and knocking out each expert does to each domain's loss."""
    found = after.values.get("losses")
    if not found:
        return None
    base = array([found["base"][domain] for domain in after.domains])[:, None]
    labels = list(found["labels"])
    kinds = [("forced", "change with this expert forced"), ("knocked_out", "change with it knocked out")]
    columns = 2 if len(labels) <= 8 else 1
    rows = 2 // columns
    long = 0.075 * max(map(len, labels)) if len(labels) > 5 else 0.15
    figure = new_figure(rows * (len(after.domains) * 0.34 + 0.75 + long))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, (key, title) in zip(grid.flat, kinds, strict=True):
        change = array(found[key]) - base
        low, high = finite_range(change)
        image = heat_map(axes, change, low=min(low, 0), high=max(high, 1e-9), write=_change, size=7.5)
        frame_cells(axes, _found(after, key))
        axes.set_title(title)
        label_columns(axes, labels, 0.8 * WIDTH / columns)
        label_rows(axes, after.domains)
        axes.set_ylabel("domain")
        axes.set_xlabel("expert")
        colour_bar(figure, image, axes, "nats a token")
    caption = (
        "Change in held-out loss, darker is worse. Framed is a domain's own specialist where its interval over "
        "documents says so: forced, it beats those of the other domains; knocked out, its own domain loses most. What "
        "is not framed may be chance."
    )
    return Drawing("losses", "The loss of each domain with one expert only, and without it", caption, figure)


def _change(value: float) -> str:
    text = f"{value:+.2f}" if abs(value) >= 0.095 else f"{value:+.3f}"
    return "0" if float(text) == 0 else text.replace("-", "−")


def _found(after: Probed, key: str) -> list[tuple[int, int]]:
    """Cells of domains and their own experts that differ by more than chance; none of copies."""
    found = after.values["losses"]
    cells = []
    for row, domain in enumerate(after.domains):
        own = found["own"][row]
        wanted = {"forced": {"forced_gap": "lower"}}.get(key, {"knocked_out_gap": "higher", "elsewhere_gap": "higher"})
        gaps = {name: (found.get(name) or [None] * len(after.domains))[row] for name in wanted}
        documents = (found.get("documents") or {}).get(domain, 0)
        shown = all(gap and side(Interval(**gap), documents) == wanted[name] for name, gap in gaps.items())
        if own is not None and shown and domain not in (found.get("copied") or ()):
            cells.append((row, own))
    return cells


def _mark_last_third(axes: Axes, probed: Probed) -> None:
    """A shade behind the last third of the layers."""
    last = (probed.values.get("last_third") or {}).get("layers") or []
    places = [place for place, layer in enumerate(probed.layers) if layer in last]
    if places:
        axes.axvspan(min(places) - 0.5, max(places) + 0.5, color="#f1f1f1", zorder=0)


def _layer_axis(axes: Axes, layers: Sequence[int]) -> np.ndarray:
    """A layer a tick, labelled with its index in the model; returns the places."""
    label_columns(axes, [str(layer) for layer in layers])
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.set_xlabel("layer")
    axes.grid(axis="y")
    return np.arange(len(layers))


def _legend_above(axes: Axes) -> None:
    low, high = axes.get_ylim()
    axes.set_ylim(low, low + (high - low) * 1.32)  # room for the legend above the lines
    axes.legend(loc="upper left", borderaxespad=0.2)


def _mean_over_domains(table: np.ndarray | None) -> np.ndarray | None:
    return None if table is None else table.mean(1)


def _top(values: np.ndarray) -> float:
    """The end of a scale of shares: the highest, rounded up to a tenth."""
    return math.ceil(10 * finite_range(values)[1]) / 10 or 1.0
