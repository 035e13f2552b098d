"""What a probe found, in three sentences: what the experts do, how sure that is, and what is not there.

A difference inside its interval, or inside the range of shuffled labels, is not a finding, and the sentences say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from smolmoe.core.statistics import Interval, Side, above_chance, enough_tokens, least_share, shortly, side, too_few
from smolmoe.core.words import listed
from smolmoe.reports.specialisation_data import Probed
from smolmoe.results.probe_findings import NOBODYS, NOT_OF_COPIES, copies_alone, copies_said

BEYOND, WITHIN = "beyond chance", "no difference beyond chance"
_SHOWN = 3  # cells that a sentence names


@dataclass(frozen=True)
class Sentence:
    """A sentence, and the question that it answers."""

    question: str
    text: str


def sentences(after: Probed) -> list[Sentence]:
    """The three sentences of a probe."""
    parts = {
        "What the experts do": [copies(after), _shares(after), _needed(after)],
        "How sure this is": [_read(after), _accuracy(after), _separation(after)],
        "What is not there": [_load(after), *_not_needed(after)],
    }
    return [Sentence(question, " ".join(filter(None, said))) for question, said in parts.items()]


def copies(after: Probed) -> str:
    """The sentence on copies, for which no specialisation is claimed; empty without copies."""
    return copies_said(after.result.similarity.output_cosine, after.layers) or ""


def flags(after: Probed) -> list[str]:
    """Findings on the losses that speak against the specialisation, without that on copies, which `copies` states."""
    found = after.result.losses.flags if after.result.losses else ()
    return [flag for flag in found if not flag.endswith(NOT_OF_COPIES)]


# -- what the experts do ---------------------------------------------------------------------------------------------


def _shares(after: Probed) -> str:
    if copies_alone(after.result.similarity.output_cosine):
        return ""
    few = too_few(after.result.documents)
    if few:
        return f"Nothing is claimed: {few}."
    chance = after.chance
    if chance is None:
        return "This probe is of an earlier version, without the range of each share by chance: probe the model again."
    _, high = chance
    above, count = after.matrix > high, int(after.beyond.sum())
    if not count:
        layer, domain, expert = np.unravel_index(int(np.argmax(after.matrix - high)), high.shape)
        return (
            f"No expert takes a share of a domain that differs beyond chance in any layer: the closest is expert "
            f"{after.labels[expert]}, with {_cell(after, int(layer), int(domain), int(expert))}."
        )
    here = after.clearest
    order = np.argsort(-np.where(above[here], after.matrix[here] - high[here], -1), axis=None)
    cells = [divmod(int(at), after.experts) for at in order if above[here].flat[at]]
    named = [f"expert {after.labels[e]} takes {_cell(after, here, d, e)}" for d, e in cells[:_SHOWN]]
    told = f"At layer {after.layers[here]}, {'; '.join(named)}. " if named else ""
    return f"{told}In all layers, {count} of {after.matrix.size} shares are {BEYOND} (framed)."


def _cell(after: Probed, layer: int, domain: int, expert: int) -> str:
    assert after.chance is not None
    low, high = (end[layer, domain, expert] for end in after.chance)
    share = after.matrix[layer, domain, expert]
    where = f"{share_of(share, 0)} of {after.domains[domain]}"
    return f"{where} (shuffled domains: {100 * low:.0f}–{share_of(high, 0)})"


# -- how sure --------------------------------------------------------------------------------------------------------


def _read(after: Probed) -> str:
    tokens, documents = sum(after.result.tokens.values()), sum(after.result.documents.values())
    return f"{tokens:,} tokens of {documents:,} documents were read, in {len(after.domains)} domains."


def _accuracy(after: Probed) -> str:
    last, documents = after.result.last_third, after.result.accuracy.documents
    few = too_few(documents)
    if few:
        return f"No accuracy is claimed: {few}."
    if last.interval is None:
        return "No accuracy is claimed: this probe is of an earlier version, without its interval."
    found, guess, judged = last.interval, 1 / len(after.domains), sum(documents.values())
    words = {"higher": "more than", "lower": "less than"}.get(side(_minus(found, guess), judged), f"{WITHIN} from")
    return (
        "In the last third of the layers, the first-choice expert gives away the domain of "
        f"{share_of(last.accuracy)} of held-out tokens [{share_of(found.low)}, {share_of(found.high)}], "
        f"{words} the {share_of(guess)} of a guess; "
        f"{gap_to(found, last.ceiling, judged, 'a linear probe on the same input')}."
    )


def gap_to(found: Interval, ceiling: float, documents: int, name: str) -> str:
    """A ceiling, and on which side of it the router is."""
    gap = _minus(found, ceiling)
    words = {"lower": "the router is below it", "higher": "the router is above it"}.get(side(gap, documents), WITHIN)
    ends = ", ".join(f"{100 * end:+.1f}" for end in (gap.low, gap.high))
    shown = f"{words}, {100 * gap.value:+.1f} points [{ends}] over {documents:,} documents".replace("-", "−")
    return f"{name} reaches {share_of(ceiling)} ({shown})"


def _separation(after: Probed) -> str:
    values, limits = after.per_layer("separation"), after.baseline("separation", "p95")
    if np.isnan(values).all() or np.isnan(limits).all() or too_few(after.result.documents):
        return ""
    count = int(np.sum(values > limits))
    verdict = f"depends on the domain {BEYOND}" if above_chance(count, len(values)) else f"shows {WITHIN}"
    place = int(np.nanargmax(values))
    return (
        f"Routing {verdict}: {count} of {len(values)} layers are past the 95th percentile of shuffled domains (layer "
        f"{after.layers[place]}: {values[place]:.2f} bits against {limits[place]:.2f})."
    )


# -- what is not there -----------------------------------------------------------------------------------------------


def _load(after: Probed) -> str:
    tokens = sum(after.result.tokens.values())
    if not enough_tokens(tokens, after.top_k, after.experts):
        return f"{tokens:,} tokens are too few to find dead experts among {after.experts}."
    dead = [f"{expert} at layer {row.layer}" for row in after.result.layers for expert in row.dead]
    more = f" and {len(dead) - 6} more" if len(dead) > 6 else ""
    alike = "" if copies(after) else "and no two experts of a layer are copies. "
    if dead:
        return f"Dead experts, which no token reached: {', '.join(dead[:6])}{more}. {alike[4:].capitalize()}".strip()
    return f"No expert is dead{', ' + alike if alike else '.'}".strip()


def _without(after: Probed, wanted: Side) -> list[str]:
    """Domains whose loss without their own experts is on this side, with their intervals; none of copies."""
    found = after.result.losses
    if found is None or not found.knocked_out_gap:
        return []
    gaps = zip(after.domains, found.own, found.knocked_out_gap, strict=True)
    return [
        f"{domain} ({shortly(gap, found.documents.get(domain, 0))})".replace("-", "−")
        for domain, own, gap in gaps
        if own is not None and gap is not None and domain not in found.copied
        if side(gap, found.documents.get(domain, 0)) == wanted
    ]


def _needed(after: Probed) -> str:
    higher = _without(after, "higher")
    return f"Without its own experts, the loss is higher for {listed(higher)}." if higher else ""


def _not_needed(after: Probed) -> Iterator[str]:
    found = after.result.losses
    if found is None:
        yield "The effect on the loss was not measured: no losses with experts forced or knocked out."
        return
    if not any(own is not None for own in found.own):
        yield NOBODYS
    elif not found.knocked_out_gap:
        yield "The effect on the loss has no intervals: this probe is of an earlier version."
    if none := _without(after, "none"):
        yield f"Without its own experts, the loss shows {WITHIN} for {listed(none)}."
    yield from flags(after)


# -- documents -------------------------------------------------------------------------------------------------------


def documents_said(after: Probed) -> str:
    """The share of documents whose majority of tokens is at an expert of their domain, with its interval."""
    shares, documents = after.result.last_third.document_majority, after.result.accuracy.documents
    if not shares or too_few(documents):
        return ""
    parts = []
    for domain, share in zip(after.domains, shares, strict=True):
        low, high = least_share(share, documents[domain]), 1 - least_share(1 - share, documents[domain])
        parts.append(f"{domain} {share_of(share, 0)} [{100 * low:.0f}, {100 * high:.0f}]")
    return f"Documents classified correctly by the majority of their tokens in these layers: {listed(parts)}."


def _minus(found: Interval, value: float) -> Interval:
    return Interval(found.value - value, found.low - value, found.high - value)


def share_of(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}%"
