"""The sentences and tables on a probe."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from smolmoe.core.statistics import NO_DIFFERENCE, Interval, above_chance, enough_tokens, side, signed, too_few
from smolmoe.reports.blocks import Fold, Table
from smolmoe.reports.specialisation_data import Probed
from smolmoe.reports.tokens import visible
from smolmoe.results.probe import Baseline, LayerResult, Losses, TopToken
from smolmoe.results.probe_findings import NOBODYS, copies_said


def headlines(after: Probed, before: Probed | None) -> list[str]:
    """The sentences at the top of the page, as plain text."""
    found = [
        _what(after),
        _copies(after),
        _accuracy(after),
        _documents(after),
        _above_chance(after, before, "separation", "Domain separation", "bits"),
        _above_chance(after, before, "contrast", "Routing contrast", "times"),
        _load(after),
        *_pays(after),
    ]
    return [sentence for sentence in found if sentence]


def flags(after: Probed) -> list[str]:
    """The flags of the losses, without copies, which are in the headlines."""
    said = _copies(after)
    return [flag for flag in (after.result.losses.flags if after.result.losses else ()) if flag != said]


def layer_table(after: Probed) -> Table:
    """All numbers of all layers."""
    columns: list[tuple[str, str, Callable[[LayerResult], Any]]] = [
        ("layer", "", lambda row: str(row.layer)),
        ("load entropy", "1 is even", lambda row: f"{row.entropy:.3f}"),
        ("CV of the load", "0 is even", lambda row: f"{row.cv:.2f}"),
        ("MaxVio", "0 is even", lambda row: f"{row.max_vio:.2f}"),
        ("active", "% of experts", lambda row: f"{row.active_percent:.0f}"),
        ("dead", "experts", lambda row: ", ".join(map(str, row.dead)) or "none"),
        ("top gate", "mean", lambda row: f"{row.confidence:.2f}"),
        ("separation", "bits (95% chance)", lambda row: _over(row.separation, row.separation_baseline)),
        (
            "mutual information",
            "bits (95% chance)",
            lambda r: _over(r.mutual_information, r.mutual_information_baseline),
        ),
        ("… given the token type", "bits", lambda row: f"{row.domain_within_type:.3f}"),
        ("… of the token type", "bits", lambda row: f"{row.token_type_information:.3f}"),
        ("contrast", "times (95% chance)", lambda row: _over(row.contrast, row.contrast_baseline, 2)),
        ("contrast of", "expert: domains", lambda row: f"{row.contrast_expert}: {' over '.join(row.contrast_domains)}"),
    ]
    head, units, _ = zip(*columns, strict=True)
    rows = [[of(row) for _, _, of in columns] for row in after.result.layers]
    return Table(head, rows, look="numbers", units=units)


def vocabulary_tables(after: Probed) -> list[Fold]:
    """The top tokens of each expert, a table for each layer; the clearest layer's is open."""
    found = after.result.vocabulary
    head = ["expert", "tokens routed to it most (share of their occurrences, occurrences)"]
    return [
        Fold(
            f"Layer {layer}: vocabulary specialisation {_share(found.specialisation[place])}",
            [
                Table(
                    head,
                    [[label, _tokens(top)] for label, top in zip(after.labels, found.top[place], strict=True)],
                    "",
                    "words",
                )
            ],
            opened=place == after.clearest,
        )
        for place, layer in enumerate(after.layers)
    ]


def loss_table(after: Probed) -> list[Table]:
    """Held-out loss of each domain, and that of the dense model if measured."""
    found = after.result.losses
    if found is None:
        return []
    dense = ["dense model", "difference"] if found.dense else []
    head = ["domain", "tokens", "loss", *dense, "own experts", "change with only them", "change without them"]
    rows = [_loss_row(found, domain, place) for place, domain in enumerate(after.domains)]
    return [Table(head, rows, "Held-out loss (nats per token)")]


def _loss_row(found: Losses, domain: str, place: int) -> list[Any]:
    base, own = found.base[domain], found.own[place]
    cells: list[Any] = [domain, found.tokens[domain], f"{base:.4f}"]
    if found.dense:
        cells += [f"{found.dense[domain]:.4f}", _change(found.dense_gap, place, base - found.dense[domain])]
    if own is None:
        return [*cells, "none", "", ""]
    out = found.knocked_out[place][own]
    without = "" if out is None else _change(found.knocked_out_gap, place, out - base)
    return [*cells, found.labels[own], _signed(found.forced[place][own] - base), without]


def _change(gaps: Sequence[Interval | None], place: int, value: float) -> str:
    """A change with its interval, if measured."""
    gap = gaps[place] if gaps else None
    return _signed(value) + (f" [{_signed(gap.low)}, {_signed(gap.high)}]" if gap else "")


def _what(after: Probed) -> str:
    named = sum(name is not None for name in after.names)
    names = f", {named} of them named" if named else ", none of them named"
    tokens, documents = sum(after.result.tokens.values()), sum(after.result.documents.values())
    return (
        f"{len(after.domains)} domains ({', '.join(after.domains)}) and {after.experts} experts{names}, {after.top_k} "
        f"per token in {len(after.layers)} layers; measured on {tokens:,} tokens of {documents:,} documents."
    )


def _copies(after: Probed) -> str:
    """The sentence on copies, which precedes claims on specialisation."""
    return copies_said(after.result.similarity.cka, after.layers) or ""


def _accuracy(after: Probed) -> str:
    last = after.result.last_third
    few = too_few(after.result.accuracy.documents)
    if few:
        return f"Domain accuracy of the routing: {few}."
    sentence = (
        f"In the last third of the layers, the domain accuracy of the first-choice expert is {_share(last.accuracy)} "
        f"(held out, mean over domains). Its ceiling, a linear probe on the router's input, reaches "
        f"{_share(last.ceiling)} ({_gap(after, last.ceiling)})"
    )
    dense = last.dense_ceiling
    if dense is None:
        return f"{sentence}."
    return f"{sentence}; on the dense model it reaches {_share(dense)} ({_gap(after, dense)})."


def _gap(after: Probed, ceiling: float) -> str:
    """The router compared with a ceiling, by the interval of its accuracy over documents."""
    found = after.result.last_third.interval
    if found is None:
        return "a probe of an earlier version, without the interval that a finding needs"
    gap = Interval(*(100 * (end - ceiling) for end in (found.value, found.low, found.high)))
    documents = sum(after.result.accuracy.documents.values())
    shown = f"{gap.value:+.1f} points, 95% interval [{gap.low:+.1f}, {gap.high:+.1f}] over {documents:,} documents"
    words = {"lower": "the router is below it", "higher": "the router is above it"}
    return f"{words.get(side(gap, documents), NO_DIFFERENCE)}: {shown}".replace("-", "−")


def _documents(after: Probed) -> str:
    shares, documents = after.result.last_third.document_majority, after.result.accuracy.documents
    if not shares or too_few(documents):
        return ""
    worst = int(np.argmin(shares))
    return (
        f"By majority over a document's tokens in these layers, document accuracy is {_share(float(np.mean(shares)))}; "
        f"the lowest is that of {after.domains[worst]}, {_share(shares[worst])} of {documents[after.domains[worst]]:,}."
    )


def _above_chance(after: Probed, before: Probed | None, key: str, words: str, unit: str) -> str:
    values = after.per_layer(key)
    if np.isnan(values).all():
        return ""
    place = int(np.nanargmax(values))
    chance = after.baseline(key, "p95")[place]
    sentence = f"{words} is highest at layer {after.layers[place]}: {_number(values[place], unit)}"
    if before is not None and not np.isnan(before.per_layer(key)).all():
        sentence += f" (before, at its highest: {_number(float(np.nanmax(before.per_layer(key))), unit)})"
    if math.isnan(chance):
        return sentence + "."
    few = too_few(after.result.documents)
    if few:
        return f"{sentence}; {few}."
    limits = after.baseline(key, "p95")
    beyond = int(np.sum(values > limits))
    verdict = "above chance" if above_chance(beyond, len(values)) else f"{NO_DIFFERENCE} from chance"
    return (
        f"{sentence}; shuffled labels give up to {_number(chance, unit)} there (95th percentile). Over all layers: "
        f"{verdict}, {beyond} of {len(values)} are beyond that percentile."
    )


def _load(after: Probed) -> str:
    rows = after.result.layers
    worst = max(rows, key=lambda row: row.max_vio)
    tokens = sum(after.result.tokens.values())
    if not enough_tokens(tokens, after.top_k, after.experts):
        return f"{tokens:,} tokens are too few to measure the load of {after.experts} experts."
    dead = [f"{expert} at layer {row.layer}" for row in rows for expert in row.dead]
    few = ", ".join(dead[:6]) + (f" and {len(dead) - 6} more" if len(dead) > 6 else "")
    entropy = float(np.mean([row.entropy for row in rows]))
    return (
        f"The mean load entropy is {entropy:.2f} (1 is even). The busiest expert, at layer {worst.layer}, "
        f"takes {1 + worst.max_vio:.1f} times the even share. "
        + (f"Dead experts, which no token reached: {few}." if dead else "No expert is dead.")
    )


def _pays(after: Probed) -> list[str]:
    found = after.result.losses
    if found is None:
        return ["The effect on the loss was not measured: there are no losses with experts forced or knocked out."]
    if not any(own is not None for own in found.own):
        return [NOBODYS]
    return found.summary or ["The effect on the loss: this probe is of an earlier version, without intervals."]


def _tokens(top: Sequence[TopToken]) -> Markup:
    if not top:
        return Markup("none often enough")
    form = Markup('<span class="tok">{}</span>&nbsp;<span class="n">{},&nbsp;{}</span>&ensp;')
    return Markup(" ").join(form.format(visible(item.token), _share(item.share, 0), item.count) for item in top)


def _over(value: float, chance: Baseline, digits: int = 3) -> str:
    """A number with the chance baseline in brackets."""
    return f"{value:.{digits}f} ({chance.p95:.{digits}f})"


def _share(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}%"


def _number(value: float, unit: str) -> str:
    return f"{value:.2f}" + (f" {unit}" if unit else "")


def _signed(value: float) -> str:
    return signed(value).replace("-", "−")
