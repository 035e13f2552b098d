"""Figures of the experts: load, co-activation, similarity and saturation."""

from __future__ import annotations

import numpy as np

from smolmoe.reports.figures import PERCENT, RATIO, Figure, Heat, Level, Lines, Series, finite_range
from smolmoe.reports.names import BEFORE, DENSE_PROBE, DOCUMENTS, OTHER, PROBE_NAMES, ROUTER
from smolmoe.reports.specialisation import by_place, panels_in_a_row
from smolmoe.reports.specialisation_data import Probed, array


def expert_figures(after: Probed, before: Probed | None) -> list[Figure]:
    """Load, co-activation, similarity and saturation, each if measured."""
    found = [load(after, before), saturation(after), similarity(after), similarity_by_layer(after), coactivation(after)]
    return [figure for figure in found if figure is not None]


def load(after: Probed, before: Probed | None) -> Figure:
    """Layer x expert, and the distribution of the load in each layer."""
    shares = array(after.result.load)
    bar = f"share (%), even is {100 / after.experts:.3g}"
    high = finite_range(shares)[1]
    heat = Heat("share of all choices", shares, after.layer_labels, after.labels, "expert", "layer", bar, 0, high)
    states = [(after, 0.0, PROBE_NAMES[ROUTER] if before else "an expert", ROUTER)]
    if before is not None:
        states = [(before, -0.17, PROBE_NAMES[BEFORE], BEFORE), (after, 0.17, PROBE_NAMES[ROUTER], ROUTER)]
    series = [
        Series(name, _dots(array(probed.result.load), shift), place, dots=True, hollow=place == BEFORE)
        for probed, shift, name, place in states
    ]
    dots = Lines(
        "distribution over the experts",
        "load (times the even share)",
        "layer",
        series,
        level=Level("even", 1, upright=True),
        rows=after.layer_labels,
        left=-0.08,
    )
    return Figure(
        "load",
        "Load of the experts",
        "An even layer has the same shade in every cell, and its dots are close to the dotted line on the right; an "
        "expert at 0 is dead.",
        [heat, dots],
        per_row=2,
    )


def _dots(shares: np.ndarray, shift: float) -> list[tuple[float, float]]:
    """A dot for each expert in each layer: its load divided by the even load."""
    return [(float(share) * len(row), place + shift) for place, row in enumerate(shares) for share in row]


def coactivation(after: Probed) -> Figure | None:
    """Expert x expert of every layer: the share of the first's tokens that also choose the second."""
    if after.top_k < 2:
        return None
    values = _without_diagonal(array(after.result.coactivation))
    return _squares(
        after,
        values,
        ("coactivation", "Experts chosen together"),
        "Of the tokens that choose the row's expert, the share that also choose the column's. A strong cell is a pair "
        "that works together, so that removing one also changes what the other does.",
        ("with expert", "chosen too (%)", PERCENT),
        (0.0, finite_range(values)[1] or 1.0),
    )


def similarity(after: Probed) -> Figure:
    """Expert x expert of every layer: CKA of the outputs on the same tokens."""
    values = _without_diagonal(array(after.result.similarity.cka))
    low, high = finite_range(values)
    return _squares(
        after,
        values,
        ("similarity", "Similarity of the experts"),
        "1 means that the outputs of two experts on the same tokens are equal up to rotation and scale, so that one "
        "of them is redundant; pale cells are experts that differ.",
        ("expert", "CKA of the outputs", RATIO),
        (min(low, 0.0), max(high, 1.0)),
    )


def _squares(
    after: Probed,
    values: np.ndarray,
    names: tuple[str, str],
    caption: str,
    words: tuple[str, str, str],
    ends: tuple[float, float],
) -> Figure:
    """A map of every layer; a page shows one at a time."""
    rows = [str(expert) for expert in range(after.experts)]
    y, bar, form = words
    return Figure(
        *names,
        caption,
        [
            Heat(title, table, rows, rows, "expert", y, bar, *ends, form=form)
            for title, table in zip(after.layer_titles(), values, strict=True)
        ],
        per_row=panels_in_a_row(len(after.layers), 4 if after.experts <= 10 else 3 if after.experts <= 20 else 2),
        slides=after.layer_titles(),
        start=after.clearest,
        square=True,
    )


def similarity_by_layer(after: Probed) -> Figure:
    """The mean over pairs of experts of three similarities, by layer."""
    found = after.result.similarity
    kinds = (
        ("CKA of outputs", found.cka, OTHER, 0.0),
        ("cosine of outputs", found.output_cosine, DENSE_PROBE, -0.06),
        ("cosine of weights", found.weight_cosine, DOCUMENTS, 0.06),
    )
    series = []
    for name, table, look, shift in kinds:
        pairs = [row[np.isfinite(row)] for row in _without_diagonal(array(table)).reshape(len(after.layers), -1)]
        known = [(place, row) for place, row in enumerate(pairs) if row.size]
        points = [(place + shift, float(row.mean())) for place, row in known]
        spans = [(float(row.min()), float(row.max())) for _, row in known]
        series.append(Series(f"{name}, mean over pairs", points, look, spans))
    panel = Lines("", "layer", "similarity (1 is the same)", series, labels=after.layer_labels, top=1.03)
    return Figure(
        "similarity-layers",
        "Similarity of outputs and of weights",
        "Experts with similar weights can have different outputs, and the reverse: the outputs decide. Vertical lines "
        "reach from the least to the most similar pair.",
        [panel],
    )


def saturation(after: Probed) -> Figure | None:
    """By layer, the share of choices that another checkpoint of the same run also makes."""
    found = after.result.saturation
    if found is None:
        return None
    chance = 100 * after.top_k / after.experts
    panel = Lines(
        "",
        "layer",
        "same choices (%)",
        [Series("chosen by both", by_place(100 * array(found)), ROUTER)],
        level=Level(f"chance ({chance:.0f}%)", chance),
        labels=after.layer_labels,
        bottom=0,
        top=103,
    )
    return Figure(
        "saturation",
        "Router saturation between two checkpoints",
        "The share of a token's experts that both checkpoints choose: near 100% the routing has settled.",
        [panel],
        inches=2.7,
    )


def _without_diagonal(values: np.ndarray) -> np.ndarray:
    """[L, E, E] with NaN for each expert with itself."""
    values = values.copy()
    diagonal = np.arange(values.shape[-1])
    values[:, diagonal, diagonal] = np.nan
    return values
