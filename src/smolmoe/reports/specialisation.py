"""Figures of the specialisation: routing by domain, distance from chance, accuracy, and effect on the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from smolmoe.core.statistics import Interval, side, too_few
from smolmoe.reports.figures import CHANGE, Band, Figure, Heat, Level, Lines, Points, Series, finite_range
from smolmoe.reports.names import BEFORE, CHANCE, DENSE_PROBE, DOCUMENTS, LINEAR_PROBE, OTHER, PROBE_NAMES, ROUTER
from smolmoe.reports.specialisation_data import Probed, array

SHARE = "share of choices (%)"


def specialisation_figures(after: Probed, before: Probed | None) -> list[Figure]:
    """All figures that a probe has numbers for, in the order of the page; `before` is an earlier probe."""
    found = [
        routing(after, before),
        separation(after, before),
        accuracy(after, before),
        accuracy_by_domain(after),
        token_types(after),
    ]
    return [figure for figure in found if figure is not None]


def _states(after: Probed, before: Probed | None) -> list[tuple[str, Probed]]:
    """The probes with the ends of their titles."""
    return [(", before", before), (", after", after)] if before is not None else [("", after)]


def routing(after: Probed, before: Probed | None) -> Figure:
    """Domain x expert of every layer; in a page, a layer at a time, before and after."""
    states = _states(after, before)
    panels = [
        (f"{title}{state}" if before is not None else title, probed.matrix[place], probed.beyond[place])
        for place, title in enumerate(after.layer_titles())
        for state, probed in states
    ]
    known = after.chance is not None or bool(too_few(after.result.documents))
    framed = (
        " Framed: beyond the range of shuffled domains, at the 95% level for all layers, domains and experts together; "
        "a pale number is within it."
    )
    few = " Pale numbers are no findings: there are too few documents of some domain."
    return Figure(
        "routing",
        "Routing of each domain" + (", before and after" if before is not None else ""),
        "Share of each domain's choices that goes to each expert, in percent: a row adds up to 100."
        + (few if too_few(after.result.documents) else framed if known else ""),
        _shares(panels, after.domains, "domain", after.labels, known=known),
        per_row=panels_in_a_row(len(after.layers), 3 if after.experts <= 10 else 2 if after.experts <= 24 else 1),
        slides=after.layer_titles(),
        states=len(states),
        start=after.clearest,
    )


def token_types(after: Probed) -> Figure | None:
    """Token type x expert at the clearest layer and on average."""
    types = after.result.token_types
    seen = [place for place, tokens in enumerate(types.tokens) if tokens]
    if not seen:
        return None
    matrix = array(types.matrix)[:, seen]
    chosen = after.clearest
    panels = [
        (f"layer {after.layers[chosen]}", matrix[chosen], None),
        (f"mean over {len(after.layers)} layers", matrix.mean(0), None),
    ]
    return Figure(
        "token-types",
        "Routing of each token type",
        "Experts may divide the text by token type and not by domain: compare with the domains. These shares have no "
        "range of chance.",
        _shares(panels, [types.names[place] for place in seen], "token type", after.labels),
        per_row=2 if after.experts <= 24 else 1,
    )


def _shares(
    panels: Sequence[tuple[str, np.ndarray, np.ndarray | None]],
    rows: Sequence[str],
    y: str,
    columns: Sequence[str],
    *,
    known: bool = False,
) -> list[Heat]:
    """Heat maps of shares on one scale, whose end is the highest share, rounded up to a tenth.

    Args:
        panels: title, shares, and which of them are beyond chance.
        known: the range of chance is known.
    """
    top = math.ceil(10 * finite_range(*(values for _, values, _ in panels))[1]) / 10 or 1.0

    def cells(mask: np.ndarray | None) -> set[tuple[int, int]]:
        return set() if mask is None or not known else {(int(row), int(column)) for row, column in np.argwhere(mask)}

    return [
        Heat(
            *(title, values, rows, columns, "expert", y, SHARE, 0, top),
            frames=cells(beyond),
            pale=cells(None if beyond is None else ~beyond),
        )
        for title, values, beyond in panels
    ]


def separation(after: Probed, before: Probed | None) -> Figure:
    """Separation, mutual information and contrast by layer, compared with shuffled labels."""
    within, known = after.result.within_type_separation, after.per_layer("domain_within_type")
    kinds = (
        ("separation", "domain separation (bits)", "Jensen-Shannon divergence", ("within one token type", within)),
        ("mutual_information", "mutual information (bits)", "Domain and first choice", ("given the token type", known)),
        ("contrast", "contrast (times)", "Routing contrast", None),
    )
    panels = []
    for key, unit, title, extra in kinds:
        series = [Series("", by_place(after.baseline(key, "p95")))]
        series.append(Series(PROBE_NAMES[ROUTER], by_place(after.per_layer(key)), ROUTER))
        if before is not None:
            series.append(Series(PROBE_NAMES[BEFORE], by_place(before.per_layer(key)), BEFORE))
        if extra is not None:
            series.append(Series(extra[0], by_place(array(extra[1])), OTHER))
        places = list(range(len(after.layers)))
        mean, top = (after.baseline(key, part).tolist() for part in ("mean", "p95"))
        band = Band(f"{CHANCE} (shuffled labels)", places, mean, top)
        bottom = 1 if key == "contrast" else 0
        panels.append(Lines(title, "layer", unit, series, [band], labels=after.layer_labels, bottom=bottom))
    return Figure(
        "separation",
        "How much routing depends on the domain",
        "A layer separates domains if its line is above the grey band, the result of shuffled labels (mean to 95th "
        "percentile).",
        panels,
        per_row=3,
    )


def accuracy(after: Probed, before: Probed | None) -> Figure:
    """Held-out routing accuracy by layer, with its ceiling."""
    found = after.result.accuracy
    lines = {
        ROUTER: found.macro,
        BEFORE: None if before is None else before.result.accuracy.macro,
        LINEAR_PROBE: found.linear_probe_macro,
        DENSE_PROBE: found.dense_linear_probe_macro,
        DOCUMENTS: array(found.document_majority).mean(1),
    }
    series = [
        Series(PROBE_NAMES[place], by_place(100 * array(values)), place)
        for place, values in lines.items()
        if values is not None
    ]
    chance = 100 / len(after.domains)
    last = [place for place, layer in enumerate(after.layers) if layer in after.result.last_third.layers]
    panel = Lines(
        "",
        "layer",
        "domain accuracy (%), mean over domains",
        series,
        level=Level(f"{CHANCE} ({chance:.0f}%)", chance),
        labels=after.layer_labels,
        bottom=0,
        top=103,
        shaded=(min(last) - 0.5, max(last) + 0.5) if last else None,
    )
    return Figure(
        "accuracy",
        "Routing accuracy, held out",
        "How often a token's first-choice expert belongs to its domain, on documents that nothing was fitted to. The "
        "linear probe is the practical ceiling; in the last third of the layers (shaded) the router should reach it.",
        [panel],
        inches=3.2,
    )


def accuracy_by_domain(after: Probed) -> Figure:
    """Accuracy of each domain by layer: per token, its ceiling, per document."""
    found = after.result.accuracy
    tables = (
        (PROBE_NAMES[ROUTER], found.per_token),
        (PROBE_NAMES[LINEAR_PROBE], found.linear_probe),
        (PROBE_NAMES[DOCUMENTS], found.document_majority),
    )
    return Figure(
        "accuracy-domains",
        "Routing accuracy of each domain",
        "Each cell is the share of the domain's tokens (right: documents) whose first-choice expert belongs to it.",
        [
            Heat(title, array(table).T, after.domains, after.layer_labels, "layer", "domain", "accuracy (%)", 0, 1)
            for title, table in tables
        ],
        per_row=len(tables) if len(after.layers) <= 12 else 1,
    )


def losses(after: Probed) -> Figure | None:
    """The effect on each domain's loss of forcing and knocking out each expert."""
    found = after.result.losses
    if found is None:
        return None
    base = array([found.base[domain] for domain in after.domains])[:, None]
    panels = []
    for key, title in (("forced", "change with this expert forced"), ("knocked_out", "change with it knocked out")):
        change = array(getattr(found, key)) - base
        low, high = finite_range(change)
        ends = min(low, 0), max(high, 1e-9)
        words = (after.domains, found.labels, "expert", "domain", "nats per token")
        panels.append(Heat(title, change, *words, *ends, form=CHANGE, frames=_framed(after, key)))
    return Figure(
        "losses",
        "Loss of each domain with one expert only, and without it",
        "Change in held-out loss; stronger is worse. A frame marks a domain's own specialist if its interval "
        "over documents supports it: forced, it beats those of the other domains; knocked out, its own domain loses "
        "most. Cells without a frame may be chance.",
        panels,
        per_row=2 if len(found.labels) <= 8 else 1,
    )


def _framed(after: Probed, key: str) -> list[tuple[int, int]]:
    """Cells of domains and their experts with a difference beyond chance; none for copies."""
    found = after.result.losses
    assert found is not None
    forced = [(found.forced_gap, "lower")]
    wanted = forced if key == "forced" else [(found.knocked_out_gap, "higher"), (found.elsewhere_gap, "higher")]
    cells = []
    for row, (domain, own) in enumerate(zip(after.domains, found.own, strict=True)):
        documents = found.documents.get(domain, 0)
        gaps: list[tuple[Interval | None, str]] = [(gap[row] if gap else None, word) for gap, word in wanted]
        shown = all(gap is not None and side(gap, documents) == word for gap, word in gaps)
        if own is not None and shown and domain not in found.copied:
            cells.append((row, own))
    return cells


def by_place(values: np.ndarray | Sequence[float]) -> Points:
    """(place, value) of all values except NaN."""
    return [(place, float(value)) for place, value in enumerate(values) if not math.isnan(value)]


def panels_in_a_row(count: int, most: int) -> int:
    """Panels per row, at most `most`, so that the rows are filled evenly."""
    return math.ceil(count / math.ceil(count / most))
