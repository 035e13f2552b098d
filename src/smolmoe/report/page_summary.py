"""The words and tables of a page: what the numbers of a probe say, and no more than they say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from smolmoe.report.page_tokens import visible
from smolmoe.report.specialisation_data import Probed, array


def headlines(after: Probed, before: Probed | None) -> list[str]:
    """The sentences at the top of the page, as plain text."""
    found = [
        _what(after),
        _accuracy(after),
        _documents(after),
        _above_chance(after, before, "separation", "Domain separation", "bits"),
        _above_chance(after, before, "contrast", "Routing contrast", "times"),
        _load(after),
        _pays(after),
    ]
    return [sentence for sentence in found if sentence]


def flags(after: Probed) -> list[str]:
    """Where the specialisation makes a domain worse or does not matter to it."""
    return list((after.values.get("losses") or {}).get("flags", ()))


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
        cells += [f"{dense[domain]:.4f}", _signed(base - dense[domain])]
    own = found["own"][place] if found.get("own") else None
    if own is None:
        cells += ["none", "", ""]
    else:
        out = found["knocked_out"][place][own]
        cells += [escape(found["labels"][own]), _signed(found["forced"][place][own] - base)]
        cells.append("" if out is None else _signed(out - base))
    return f"<tr><th>{escape(domain)}</th>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _what(after: Probed) -> str:
    named = sum(name is not None for name in after.names)
    names = f", {named} of them named" if named else ", none of them named"
    tokens, documents = sum(after.values["tokens"].values()), sum(after.values["documents"].values())
    return (
        f"{len(after.domains)} domains ({', '.join(after.domains)}) and {after.experts} experts{names}, {after.top_k} "
        f"a token in {len(after.layers)} layers; measured on {tokens:,} tokens of {documents:,} documents."
    )


def _accuracy(after: Probed) -> str:
    last = after.values.get("last_third")
    if not last:
        return ""
    sentence = (
        f"In the last third of the layers the first expert tells a token's domain right {_share(last['accuracy'])} of "
        f"the time, held out, mean over domains. Its ceiling, a linear probe on its input, reaches "
        f"{_share(last['ceiling'])} (the router is {_gap(last['accuracy'] - last['ceiling'])})"
    )
    dense = last.get("dense_ceiling")
    if dense is None:
        return f"{sentence}."
    return (
        f"{sentence}; on the dense model it reaches {_share(dense)} (the router is {_gap(last['accuracy'] - dense)})."
    )


def _gap(difference: float) -> str:
    points = 100 * difference
    return "level" if abs(points) < 0.05 else f"{abs(points):.1f} points {'above' if points > 0 else 'below'}"


def _documents(after: Probed) -> str:
    last = after.values.get("last_third")
    if not last or not last.get("document_majority"):
        return ""
    shares = last["document_majority"]
    worst = int(np.argmin(shares))
    return (
        f"By majority over a document's tokens in these layers, {_share(float(np.mean(shares)))} of the documents are "
        f"told right; the least sure domain is {after.domains[worst]} with {_share(shares[worst])}."
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
    verdict = "above" if values[place] > chance else "not above"
    return (
        f"{sentence}. That is {verdict} chance: shuffled labels give up to {_number(chance, unit)} (95th percentile)."
    )


def _load(after: Probed) -> str:
    rows = after.values["layers"]
    worst = max(rows, key=lambda row: row["max_vio"])
    dead = [f"{expert} at layer {row['layer']}" for row in rows for expert in row["dead"]]
    few = ", ".join(dead[:6]) + (f" and {len(dead) - 6} more" if len(dead) > 6 else "")
    return (
        f"The load is {_number(float(np.mean([row['entropy'] for row in rows])), '')} even on average (entropy, 1 is "
        f"even). The busiest expert, at layer {worst['layer']}, takes {1 + worst['max_vio']:.1f} times the even share. "
        + (f"Dead experts, which no token reached: {few}." if dead else "No expert is dead.")
    )


def _pays(after: Probed) -> str:
    found = after.values.get("losses")
    if not found:
        return "Whether it pays was not measured: there are no losses with experts forced or knocked out."
    base = array([found["base"][domain] for domain in after.domains])[:, None]
    change = array(found["knocked_out"]) - base
    pairs = [(row, own) for row, own in enumerate(found["own"]) if own is not None and not np.isnan(change[row, own])]
    if not pairs:
        return "No domain has experts of its own that could be knocked out."
    right = [row for row, own in pairs if int(np.nanargmax(change[:, own])) == row]
    mean = float(np.mean([change[pair] for pair in pairs]))
    sentence = (
        f"Knocking out a domain's own experts hurts that domain most for {len(right)} of {len(pairs)} domains, and "
        f"changes its loss by {_signed(mean)} nats a token on average."
    )
    if found.get("dense"):
        worse = [domain for domain in after.domains if found["base"][domain] > found["dense"][domain]]
        sentence += f" The loss is higher than the dense model's in {', '.join(worse) or 'no domain'}."
    return sentence


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
    return f"{value:+.4f}".replace("-", "−")
