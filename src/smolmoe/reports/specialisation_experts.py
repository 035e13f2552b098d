"""Figures of the experts themselves: their load, who is chosen together, how alike their outputs are.

Call them inside `drawing.look()`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from smolmoe.reports.drawing import (
    GREY,
    WIDTH,
    Drawing,
    Panels,
    colour_bar,
    finite_range,
    heat_map,
    label_columns,
    label_rows,
    new_figure,
    panels_in_a_row,
    percent,
)
from smolmoe.reports.names import BEFORE, DENSE_PROBE, DOCUMENTS, OTHER, PROBE_NAMES, ROUTER, style
from smolmoe.reports.specialisation_data import Probed, array


def expert_figures(after: Probed, before: Probed | None) -> list[Drawing]:
    """Load, co-activation, similarity and saturation, each where it was measured."""
    found = [load(after, before), saturation(after), similarity(after), similarity_by_layer(after), coactivation(after)]
    return [drawing for drawing in found if drawing is not None]


def load(after: Probed, before: Probed | None) -> Drawing:
    """Layer x expert, and how far the loads of each layer's experts lie apart."""
    shares = array(after.values["load"])
    height = max(3.0, len(after.layers) * 0.26 + 1.2)
    figure = new_figure(height)
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
    fits = after.experts <= 28
    image = heat_map(left, shares, low=0, high=finite_range(shares)[1], write=percent if fits else None, size=6.5)
    left.set_title("share of all choices")
    label_columns(left, after.labels, 0.5 * WIDTH)
    label_rows(left, [str(layer) for layer in after.layers])
    left.set_xlabel("expert")
    left.set_ylabel("layer")
    colour_bar(figure, image, left, f"share (%), even is {100 / after.experts:.3g}", in_percent=True)
    _spread(right, after, shares, before)
    caption = (
        "An even layer has the same shade in every cell, and its dots lie close to the dashed line on the right; an "
        "expert at 0 is dead."
    )
    return Drawing("load", "How the load falls on the experts", caption, figure)


def _spread(axes: Any, after: Probed, shares: np.ndarray, before: Probed | None) -> None:
    """A dot for each expert in each layer: its load over the even load."""
    states = [(after, shares, 0.0, PROBE_NAMES[ROUTER] if before else "an expert")]
    if before is not None:
        states = [
            (before, array(before.values["load"]), -0.17, PROBE_NAMES[BEFORE]),
            (after, shares, 0.17, PROBE_NAMES[ROUTER]),
        ]
    for index, (_, table, shift, label) in enumerate(states):
        times = table * after.experts
        places = np.repeat(np.arange(len(after.layers)) + shift, after.experts)
        hollow = before is not None and index == 0
        axes.scatter(
            times.ravel(),
            places,
            s=20,
            marker="s" if hollow else "o",
            facecolors="none" if hollow else style(ROUTER)["color"],
            edgecolors=style(BEFORE)["color"] if hollow else "white",
            linewidths=0.9 if hollow else 0.4,
            label=label,
            zorder=2,
        )
    axes.axvline(1, color=GREY, linestyle="--", linewidth=1, label="even", zorder=1)
    axes.set_ylim(len(after.layers) - 0.5, -0.5)
    label_rows(axes, [str(layer) for layer in after.layers])
    axes.set_xlim(left=-0.08)
    axes.set_xlabel("load (times the even share)")
    axes.set_ylabel("layer")
    axes.grid(axis="y")
    axes.set_title("distribution over the experts")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def coactivation(after: Probed) -> Drawing | None:
    """Expert x expert of every layer: how often the second is chosen beside the first."""
    if after.top_k < 2:
        return None
    values = _without_diagonal(array(after.values["coactivation"]))
    drawn = _squares(after, values, "beside expert", "chosen too (%)", high=finite_range(values)[1] or 1.0)
    caption = (
        "Of the tokens that choose the row's expert, the share that choose the column's too: a dark cell is a pair "
        "that works together, so that taking one out also changes what the other does."
    )
    return Drawing("coactivation", "Experts chosen together", caption, drawn)


def similarity(after: Probed) -> Drawing | None:
    """Expert x expert of every layer: CKA of the outputs on the same tokens."""
    found = after.values.get("similarity")
    if not found:
        return None
    values = _without_diagonal(array(found["cka"]))
    low, high = finite_range(values)
    drawn = _squares(
        after, values, "expert", "CKA of the outputs", low=min(low, 0.0), high=max(high, 1.0), write=_two_digits
    )
    caption = (
        "1 means that two experts do the same to the same tokens up to rotation and scale, so that one of them could "
        "go; light cells are experts that really differ."
    )
    return Drawing("similarity", "How alike the experts are", caption, drawn)


def similarity_by_layer(after: Probed) -> Drawing | None:
    """The mean over pairs of experts of three similarities, by layer."""
    found = after.values.get("similarity")
    if not found:
        return None
    kinds = (
        ("CKA of outputs", "cka"),
        ("cosine of outputs", "output_cosine"),
        ("cosine of weights", "weight_cosine"),
    )
    figure = new_figure(3.0)
    axes = figure.subplots()
    places = np.arange(len(after.layers))
    for (label, key), look, shift in zip(
        kinds, map(style, (OTHER, DENSE_PROBE, DOCUMENTS)), (0.0, -0.06, 0.06), strict=True
    ):
        pairs = _without_diagonal(array(found[key])).reshape(len(after.layers), -1)
        axes.plot(places + shift, _over(pairs, np.mean), label=f"{label}, mean over pairs", **look)
        axes.vlines(places + shift, _over(pairs, np.min), _over(pairs, np.max), color=look["color"], linewidth=1)
    axes.set_ylim(top=1.03)
    label_columns(axes, [str(layer) for layer in after.layers])
    axes.set_xlabel("layer")
    axes.set_ylabel("similarity (1 is the same)")
    axes.grid(axis="y")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    caption = (
        "Experts can keep much the same weights and yet do different things, or the other way round: the outputs "
        "decide; the upright lines reach from the least to the most alike pair."
    )
    return Drawing("similarity-layers", "Likeness in outputs and in weights", caption, figure)


def saturation(after: Probed) -> Drawing | None:
    """By layer, the share of choices that another checkpoint of the same run made as well."""
    found = after.values.get("saturation")
    if not found:
        return None
    figure = new_figure(2.8)
    axes = figure.subplots()
    axes.plot(np.arange(len(after.layers)), 100 * array(found), label="chosen by both", **style(ROUTER))
    chance = 100 * after.top_k / after.experts
    axes.axhline(chance, color=GREY, linestyle="--", linewidth=1, label=f"chance ({chance:.0f}%)")
    label_columns(axes, [str(layer) for layer in after.layers])
    axes.set_ylim(0, 103)
    axes.set_xlabel("layer")
    axes.set_ylabel("same choices (%)")
    axes.grid(axis="y")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    caption = "The share of a token's experts that both checkpoints choose: near 100% the routing has settled."
    return Drawing("saturation", "Router saturation between two checkpoints", caption, figure)


def _squares(
    after: Probed,
    values: np.ndarray,
    row_axis: str,
    bar: str,
    *,
    high: float,
    low: float = 0.0,
    write: Callable[[float], str] = percent,
) -> Any:
    per_row = panels_in_a_row(len(after.layers), 4 if after.experts <= 10 else 3 if after.experts <= 20 else 2)
    panel = (WIDTH - 1.4) / max(per_row, 2)
    return Panels(
        values=values,
        titles=after.layer_titles(),
        rows=[str(index) for index in range(after.experts)],
        columns=[str(index) for index in range(after.experts)],
        row_axis=row_axis,
        column_axis="expert",
        bar=bar,
        low=low,
        high=high,
        write=write,
        in_percent=write is percent,
        per_row=per_row,
        cell=0.8 * panel / after.experts,
    ).draw()


def _two_digits(value: float) -> str:
    return f"{value:.2f}".replace("0.", ".")


def _without_diagonal(values: np.ndarray) -> np.ndarray:
    """[L, E, E] with NaN for each expert beside itself."""
    values = values.copy()
    diagonal = np.arange(values.shape[-1])
    values[:, diagonal, diagonal] = np.nan
    return values


def _over(pairs: np.ndarray, of: Any) -> np.ndarray:
    """[L]: `of` the numbers of each layer, NaN where there are none."""
    kept = [line[np.isfinite(line)] for line in pairs]
    return array([of(line) if line.size else None for line in kept])
