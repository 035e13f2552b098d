"""The words and tables of a page: what the numbers of a probe say, and no more than they say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from smolmoe.core.interval import NO_DIFFERENCE, Interval, above_chance, enough_tokens, side, signed, too_few
from smolmoe.reports.page_tokens import visible
from smolmoe.reports.specialisation_data import Probed
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
    """Where the specialisation makes a domain worse or does not matter to it; copies are in the headlines already."""
    said = _copies(after)
    return [flag for flag in (after.values.get("losses") or {}).get("flags", ()) if flag != said]


def layer_table(after: Probed) -> str:
    """Every number of every layer, as an HTML table."""
    columns: list[tuple[str, str, Any]] = [
        ("load entropy", "1 is even", lambda row: f"{row['entropy']:.3f}"),
        ("CV", "of the load", lambda row: f"{row['cv']:.2f}"),
        ("MaxVio", "0 is even", lambda row: f"{row['max_vio']:.2f}"),
        ("active", "% of experts", lambda row: f"{row['active_percent']:.0f}"),
        ("dead", "experts", lambda row: ", ".join(map(str, row["dead"])) or "none"),
        ("top gate", "mean", lambda row: f"{row['confidence']:.2f}"),
        ("separation", "bits (95% chance)", lambda row: _over(row, "separation")),
        ("mutual information", "bits (95% chance)", lambda row: _over(row, "mutual_information")),
        ("… where the type is known", "bits", lambda row: f"{row['domain_within_type']:.3f}"),
        ("of token type", "bits", lambda row: f"{row['token_type_information']:.3f}"),
        ("contrast", "times (95% chance)", lambda row: _over(row, "contrast")),
        ("where", "expert: domains", _where),
    ]
    head = "".join(f"<th>{name}<br><small>{unit}</small></th>" for name, unit, _ in columns)
    body = "".join(
        f"<tr><th>{row['layer']}</th>" + "".join(f"<td>{escape(show(row))}</td>" for _, _, show in columns) + "</tr>"
        for row in after.values["layers"]
    )
    table = f"<thead><tr><th>layer</th>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="wide"><table class="numbers">{table}</table></div>'


def vocabulary_tables(after: Probed) -> str:
    """The top tokens of each expert, a table for each layer; the clearest layer's is open."""
    found = after.values.get("vocabulary")
    if not found:
        return ""
    parts = []
    for place, layer in enumerate(after.layers):
        rows = "".join(
            f"<tr><th>{escape(label)}</th><td>{_tokens(found['top'][place][expert])}</td></tr>"
            for expert, label in enumerate(after.labels)
        )
        opened = " open" if place == after.clearest else ""
        parts.append(
            f"<details{opened}><summary>Layer {layer}: vocabulary specialisation "
            f"{_number(found['specialisation'][place], 'percent')}</summary>"
            '<div class="wide"><table class="words"><thead><tr><th>expert</th><th>tokens it takes most of '
            f"(share of their occurrences, occurrences)</th></tr></thead><tbody>{rows}</tbody></table></div></details>"
        )
    return "\n".join(parts)


def loss_table(after: Probed) -> str:
    """Held-out loss of each domain as the model is, and of the dense model where it was measured."""
    found = after.values.get("losses")
    if not found:
        return ""
    dense = found.get("dense")
    rows = "".join(_loss_row(after, found, dense, place) for place in range(len(after.domains)))
    head = "<th>domain</th><th>tokens</th><th>loss</th>" + ("<th>dense model</th><th>difference</th>" if dense else "")
    head += "<th>own experts</th><th>only them</th><th>without them</th>"
    return (
        f'<div class="wide"><table><caption>Held-out loss, nats a token</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _loss_row(after: Probed, found: Mapping[str, Any], dense: Mapping[str, float] | None, place: int) -> str:
    domain = after.domains[place]
    base = found["base"][domain]
    cells = [f"{found['tokens'][domain]:,}" if found.get("tokens") else "", f"{base:.4f}"]
    if dense:
        cells += [f"{dense[domain]:.4f}", _change(found, "dense_gap", place, base - dense[domain])]
    own = found["own"][place] if found.get("own") else None
    if own is None:
        cells += ["none", "", ""]
    else:
        out = found["knocked_out"][place][own]
        cells += [escape(found["labels"][own]), _signed(found["forced"][place][own] - base)]
        cells.append("" if out is None else _change(found, "knocked_out_gap", place, out - base))
    return f"<tr><th>{escape(domain)}</th>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _change(found: Mapping[str, Any], key: str, place: int, value: float) -> str:
    """A change with its interval, where that was measured."""
    gap = (found.get(key) or {})[place] if found.get(key) else None
    return _signed(value) + (f" [{_signed(gap['low'])}, {_signed(gap['high'])}]" if gap else "")


def _what(after: Probed) -> str:
    named = sum(name is not None for name in after.names)
    names = f", {named} of them named" if named else ", none of them named"
    tokens, documents = sum(after.values["tokens"].values()), sum(after.values["documents"].values())
    return (
        f"{len(after.domains)} domains ({', '.join(after.domains)}) and {after.experts} experts{names}, {after.top_k} "
        f"a token in {len(after.layers)} layers; measured on {tokens:,} tokens of {documents:,} documents."
    )


def _copies(after: Probed) -> str:
    """Before anything is said of what experts specialise in."""
    cka = (after.values.get("similarity") or {}).get("cka")
    return (copies_said(cka, after.layers) or "") if cka else ""


def _accuracy(after: Probed) -> str:
    last = after.values.get("last_third")
    if not last:
        return ""
    few = too_few(after.values["accuracy"]["documents"])
    if few:
        return f"How often routing tells the domain: {few}."
    sentence = (
        f"In the last third of the layers the first expert tells a token's domain right {_share(last['accuracy'])} of "
        f"the time, held out, mean over domains. Its ceiling, a linear probe on its input, reaches "
        f"{_share(last['ceiling'])} ({_gap(after, last['ceiling'])})"
    )
    dense = last.get("dense_ceiling")
    if dense is None:
        return f"{sentence}."
    return f"{sentence}; on the dense model it reaches {_share(dense)} ({_gap(after, dense)})."


def _gap(after: Probed, ceiling: float) -> str:
    """How the router does beside a ceiling, by the interval of its accuracy over documents."""
    last = after.values["last_third"]
    found = last.get("interval")
    if not found:
        return "a probe of an earlier version, without the interval that a finding takes"
    gap = Interval(*(100 * (found[end] - ceiling) for end in ("value", "low", "high")))
    documents = sum(after.values["accuracy"]["documents"].values())
    shown = f"{gap.value:+.1f} points, 95% interval [{gap.low:+.1f}, {gap.high:+.1f}] over {documents:,} documents"
    words = {"lower": "the router is below it", "higher": "the router is above it"}
    return f"{words.get(side(gap, documents), NO_DIFFERENCE)}: {shown}".replace("-", "−")


def _documents(after: Probed) -> str:
    last = after.values.get("last_third")
    if not last or not last.get("document_majority") or too_few(after.values["accuracy"]["documents"]):
        return ""
    shares = last["document_majority"]
    worst = int(np.argmin(shares))
    return (
        f"By majority over a document's tokens in these layers, {_share(float(np.mean(shares)))} of the documents are "
        f"told right; the lowest share is that of {after.domains[worst]}, {_share(shares[worst])} of "
        f"{after.values['accuracy']['documents'][after.domains[worst]]:,}."
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
    few = too_few(after.values["documents"])
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
    rows = after.values["layers"]
    worst = max(rows, key=lambda row: row["max_vio"])
    tokens = sum(after.values["tokens"].values())
    if not enough_tokens(tokens, after.top_k, after.experts):
        return f"{tokens:,} tokens are too few to say how the load falls on {after.experts} experts."
    dead = [f"{expert} at layer {row['layer']}" for row in rows for expert in row["dead"]]
    few = ", ".join(dead[:6]) + (f" and {len(dead) - 6} more" if len(dead) > 6 else "")
    return (
        f"The load is {_number(float(np.mean([row['entropy'] for row in rows])), '')} even on average (entropy, 1 is "
        f"even). The busiest expert, at layer {worst['layer']}, takes {1 + worst['max_vio']:.1f} times the even share. "
        + (f"Dead experts, which no token reached: {few}." if dead else "No expert is dead.")
    )


def _pays(after: Probed) -> list[str]:
    found = after.values.get("losses")
    if not found:
        return ["Whether it pays was not measured: there are no losses with experts forced or knocked out."]
    if not any(own is not None for own in found["own"]):
        return [NOBODYS]
    said = found.get("summary") or ["Whether it pays: this probe is of an earlier version, without intervals."]
    return [str(sentence) for sentence in said]


def _tokens(top: list[Mapping[str, Any]]) -> str:
    if not top:
        return "none often enough"
    return " ".join(
        f'<span class="tok">{visible(item["token"])}</span>&nbsp;<span class="n">{_share(item["share"], 0)},'
        f"&nbsp;{item['count']}</span>&ensp;"
        for item in top
    )


def _over(row: Mapping[str, Any], key: str) -> str:
    """A number and, in brackets, what chance gives."""
    digits = 2 if key == "contrast" else 3
    chance = (row.get(f"{key}_baseline") or {}).get("p95")
    return f"{row[key]:.{digits}f}" + ("" if chance is None else f" ({chance:.{digits}f})")


def _where(row: Mapping[str, Any]) -> str:
    return f"{row['contrast_expert']}: {' over '.join(row['contrast_domains'])}"


def _share(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}%"


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "not measured"
    if unit == "percent":
        return _share(value)
    return f"{value:.2f}" + (f" {unit}" if unit else "")


def _signed(value: float) -> str:
    return signed(value).replace("-", "−")
